"""Fidelity measures against known cases; figures, table, report and sample files on Burgers at 16 x 16."""

import io
import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from matplotlib.image import imread
from rich.console import Console

from envs.data.datasets import InvalidDataError
from envs.pdes import PDE, make_pde
from pirf_ray.evaluation.report import draw_report
from pirf_ray.evaluation.samples import read_attributes, read_samples, write_samples
from pirf_ray.evaluation.tables import result_table
from pirf_ray.metrics import distances, fidelity, spectra, statistics
from pirf_ray.metrics.evaluation import evaluate_sets

RESOLUTION = 16
COUNT = 48


def gaussian(seed: int, count: int, *shape: int) -> torch.Tensor:
    return torch.randn((count, *shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def smoothed(fields: torch.Tensor) -> torch.Tensor:
    return (fields + fields.roll(1, -1) + fields.roll(1, -2) + fields.roll((1, 1), (-1, -2))) / 4


@pytest.fixture(scope="module")
def pde() -> PDE:
    return make_pde("Burgers-v0", RESOLUTION)


@pytest.fixture(scope="module")
def truth(pde: PDE) -> torch.Tensor:
    return pde.solve(0, "test", range(4 * COUNT)).float()


@pytest.fixture(scope="module")
def sets(truth: torch.Tensor) -> dict[str, torch.Tensor]:
    """Base and tuned: real fields with white noise of 0.05 and 0.005."""
    fields = truth[:COUNT]
    noise = gaussian(0, *fields.shape).float()
    return {"base": fields + 0.05 * noise, "tuned": fields + 0.005 * noise}


@pytest.fixture(scope="module")
def result(pde: PDE, sets: dict[str, torch.Tensor], truth: torch.Tensor) -> dict[str, Any]:
    return evaluate_sets(pde, sets, real=truth[COUNT : 3 * COUNT], real_other=truth[3 * COUNT :])


@pytest.fixture(scope="module")
def samples(sets: dict[str, torch.Tensor], truth: torch.Tensor) -> dict[str, np.ndarray]:
    return {name: fields.numpy() for name, fields in {**sets, "data": truth[3 * COUNT :]}.items()}


@pytest.mark.parametrize(("operator", "sigma"), [("consistent", 1e-3), ("consistent", 1e-2), ("simpson", 3e-2)])
def test_the_noise_equivalent_finds_the_noise(pde: PDE, truth: torch.Tensor, operator: str, sigma: float) -> None:
    """Real fields with white noise of sigma x std, other noise than the probe's, are reported as sigma (where it is over the floor)."""
    fields = truth[4:].double()  # nearly all that the floor is of: only the noise differs
    noisy = fields + sigma * statistics.amplitude(fields)[:, None, None] * gaussian(3, *fields.shape)
    figures = evaluate_sets(pde, {"base": noisy}, real=truth[:4], real_other=truth[4:])
    assert figures["base"][f"residual/{operator}/noise_equivalent"] == pytest.approx(sigma, rel=0.1)
    assert figures["data"][f"residual/{operator}/noise_equivalent"] == 0


def test_spectrum_errors_are_told_by_channel() -> None:
    """Channel 0 is twice as large, four times its power: log10(4) decades in every bin; channel 1 is the reference's own."""
    b = gaussian(0, 64, 2, 8, 8)
    a = b * torch.tensor([2.0, 1.0])[:, None, None]
    assert spectra.log_spectrum_errors(a, b).tolist() == pytest.approx([math.log10(4), 0], abs=1e-9)
    assert spectra.log_spectrum_error(a, b) == pytest.approx(math.log10(4) / math.sqrt(2))


def test_identical_sets_have_energy_distance_zero() -> None:
    a = gaussian(0, 40, 2, 4, 4)
    assert distances.energy_distance(a, a.clone()) < 1e-6
    assert distances.energy_distance(a, a.flip(0)) < 1e-6


def test_two_point_masses() -> None:
    """b: all samples one field of std 1; a: the same field shifted by d. Then ED^2 = 2d, and nothing varies within."""
    pattern = torch.tensor([1.0, -1.0]).repeat(8).reshape(1, 1, 4, 4)
    b = (pattern / statistics.amplitude(pattern)).expand(10, -1, -1, -1)
    for d in (0.5, 3.0):
        std = statistics.amplitude(b)[0].item()
        assert distances.energy_distance(b[:6] + d * std, b) ** 2 == pytest.approx(2 * d, rel=1e-6)
        assert distances.energy_distance_squared_unbiased(b[:6] + d * std, b) == pytest.approx(2 * d, rel=1e-6)


def test_energy_distance_against_brute_force() -> None:
    a, b = gaussian(1, 7, 2, 3, 5), gaussian(2, 9, 2, 3, 5) * torch.tensor([1.0, 50.0])[:, None, None]

    def distance(x: torch.Tensor, y: torch.Tensor) -> float:
        return ((x - y) / statistics.amplitude(b)[:, None, None]).square().mean().sqrt().item()

    def mean(xs: torch.Tensor, ys: torch.Tensor) -> float:
        return float(np.mean([distance(x, y) for x in xs for y in ys]))

    squared = 2 * mean(a, b) - mean(a, a) - mean(b, b)
    assert distances.energy_distance(a, b) ** 2 == pytest.approx(squared, rel=1e-6)
    unbiased = 2 * mean(a, b) - mean(a, a) * 7 / 6 - mean(b, b) * 9 / 8
    assert distances.energy_distance_squared_unbiased(a, b) == pytest.approx(unbiased, rel=1e-6)
    assert distances.diversity(a, b) == pytest.approx(mean(a, a) * 7 / 6, rel=1e-6)
    nearest = torch.tensor([min(distance(x, y) for y in b) for x in a]).median().item()
    assert distances.nearest_distance(a, b) == pytest.approx(nearest, rel=1e-6)


def test_energy_distance_does_not_depend_on_units_or_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = gaussian(3, 20, 2, 4, 4), 1.5 * gaussian(4, 30, 2, 4, 4)
    expected = distances.energy_distance(a, b)
    units = torch.tensor([1e-3, 40.0])[:, None, None]
    assert distances.energy_distance(a * units + 7, b * units + 7) == pytest.approx(expected, rel=1e-6)
    monkeypatch.setattr(fidelity, "BLOCK", 7)
    assert distances.energy_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_same_law() -> None:
    """U-statistic: mean 0. V-statistic: its square has mean (1/n + 1/m) E|X-X'|."""
    n, m, trials = 12, 30, 200
    figures = [distances.compare(gaussian(2 * i, n, 1, 2, 2), gaussian(2 * i + 1, m, 1, 2, 2)) for i in range(trials)]
    unbiased = np.array([f.energy_squared_unbiased for f in figures])
    squared = np.array([f.energy**2 for f in figures])
    predicted = np.mean([f.energy_same_law**2 for f in figures])
    assert abs(unbiased.mean()) < 4 * unbiased.std() / math.sqrt(trials)
    assert predicted > 0.1
    assert abs(squared.mean() - predicted) < 4 * squared.std() / math.sqrt(trials)


def test_collapse_is_seen() -> None:
    a, b = gaussian(0, 200, 1, 4, 4), gaussian(1, 200, 1, 4, 4)
    figures = distances.compare(0.7 * a, b)
    assert figures.energy > 1.5 * distances.energy_distance(a, b)
    assert figures.diversity_ratio == pytest.approx(0.7, rel=0.03)


def test_nan_is_never_zero_distance() -> None:
    a, b = gaussian(0, 8, 1, 4, 4), gaussian(1, 8, 1, 4, 4)
    a[3, 0, 1, 1] = math.nan
    assert math.isnan(distances.energy_distance(a, b))


def test_distances_refuse_other_shapes_and_constant_references() -> None:
    with pytest.raises(ValueError, match="same channels and grid"):
        distances.energy_distance(gaussian(0, 4, 1, 4, 4), gaussian(1, 4, 1, 4, 8))
    with pytest.raises(ValueError, match="channel 0 of the reference set is constant"):
        distances.energy_distance(gaussian(0, 4, 1, 4, 4), torch.ones(4, 1, 4, 4))


def test_amplitude_per_channel() -> None:
    b = gaussian(0, 30, 2, 8, 8)
    a = b * torch.tensor([1.1, 0.5])[:, None, None]
    torch.testing.assert_close(statistics.amplitude_ratio(a, b), torch.tensor([1.1, 0.5], dtype=torch.float64))


def test_mean_and_std_field_errors() -> None:
    b = gaussian(0, 30, 1, 8, 8)
    s = statistics.amplitude(b)[0]
    assert statistics.mean_field_error(b + 0.3 * s, b) == pytest.approx(0.09)
    assert statistics.std_field_error(b + 0.3 * s, b) == pytest.approx(0, abs=1e-12)
    assert statistics.std_field_error(b * 1.2, b) == pytest.approx(0.04 * b.std(0).square().mean().item() / s.item() ** 2)


def test_spectrum_of_a_cosine() -> None:
    """2 cos(2 pi 3 x) has mean square 2, all of it at k = 3; a Hann window leaves no more than the two neighbours."""
    x = torch.arange(16, dtype=torch.float64) / 16
    rows = (2 * torch.cos(6 * torch.pi * x)).expand(5, 1, 8, 16)
    expected = torch.zeros(1, 9, dtype=torch.float64)
    expected[0, 3] = 2
    torch.testing.assert_close(spectra.spectrum(rows), expected)
    torch.testing.assert_close(spectra.spectrum(rows.transpose(-1, -2), -2), expected)
    windowed = spectra.spectrum(rows, periodic=False)[0]
    assert windowed.sum().item() == pytest.approx(2)
    assert windowed[2:5].sum().item() == pytest.approx(2)
    noise = gaussian(0, 20, 1, 8, 15)
    assert spectra.spectrum(noise).sum().item() == pytest.approx(noise.square().mean().item())


@pytest.mark.parametrize("periodic", [(True, True), (False, True), (False, False)])
def test_blur_and_noise_show_in_the_spectrum(periodic: tuple[bool, bool]) -> None:
    b = smoothed(gaussian(0, 60, 2, 16, 16))
    assert (spectra.high_wavenumber_ratio(smoothed(b), b, periodic) < 0.5).all()
    assert (spectra.high_wavenumber_ratio(b + gaussian(1, *b.shape), b, periodic) > 1.5).all()
    assert spectra.log_spectrum_error(b, b, periodic) == 0
    assert spectra.log_spectrum_error(10 * b, b, periodic) == pytest.approx(2)
    torch.testing.assert_close(spectra.high_wavenumber_ratio(3 * b, b, periodic), torch.full((2,), 9.0, dtype=torch.float64))


def test_flicker_along_either_axis_is_high_wavenumber() -> None:
    b = smoothed(smoothed(gaussian(0, 20, 1, 16, 16)))
    flicker = (-1.0) ** torch.arange(16)
    for pattern in (flicker[:, None], flicker[None, :]):
        assert spectra.high_wavenumber_ratio(b + 0.3 * pattern, b, (False, True)) > 2


def test_a_ramp_is_not_high_wavenumber_on_an_axis_that_is_not_periodic() -> None:
    """Without the window, the jump between the ends of the axis would be energy at every wavenumber."""
    ramp = torch.linspace(-1, 1, 32, dtype=torch.float64)[:, None] * gaussian(0, 40, 1, 1, 32)
    raw, windowed = spectra.spectrum(ramp, -2)[0], spectra.spectrum(ramp, -2, periodic=False)[0]
    assert windowed[8:].sum() < 1e-3 * raw[8:].sum()


def test_bootstrap_interval() -> None:
    values = gaussian(0, 400) + 5
    low, high = statistics.bootstrap_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std().item() / 20, rel=0.15)
    assert (low, high) == statistics.bootstrap_interval(values)
    low, high = statistics.bootstrap_interval(values, "median", seed=1)
    assert low < values.median() < high


def test_bootstrap_covers_the_mean() -> None:
    covered = [
        low < 0 < high for low, high in (statistics.bootstrap_interval(gaussian(i, 60), resamples=300) for i in range(100))
    ]
    assert 86 <= sum(covered) <= 100


def test_an_interval_knows_which_values_depend_on_each_other() -> None:
    """Blocks of 8 equal values: the mean of n = 400 has the standard error of 50, sqrt(8) times that of independent ones."""
    values = (gaussian(0, 50) + 5).repeat_interleave(8)
    low, high = statistics.bootstrap_interval(values, block=8)
    assert high - low == pytest.approx(2 * 1.96 * values.std().item() / 50**0.5, rel=0.15)
    assert (low, high) == statistics.bootstrap_interval(values[::8])
    covered = [
        low < 0 < high
        for low, high in (
            statistics.bootstrap_interval(gaussian(i, 60).repeat_interleave(4), resamples=300, block=4) for i in range(100)
        )
    ]
    assert 86 <= sum(covered) <= 100


def test_the_floor_is_of_all_held_out_fields(result: dict[str, Any], pde: PDE, truth: torch.Tensor) -> None:
    for name in pde.operators:
        floor = pde.residual(truth[COUNT:].double(), name).mean().item()
        assert result["data"][f"residual/{name}/mean"] == pytest.approx(floor, rel=1e-9)
        assert result["base"][f"residual/{name}/over_floor"] == pytest.approx(result["base"][f"residual/{name}/mean"] / floor)


def test_figures_order_sets_by_their_noise(result: dict[str, Any], pde: PDE) -> None:
    assert result["sets"] == ["base", "tuned", "data"]
    for figure in [f"residual/{pde.default_operator}/mean", "resolve/median"]:
        base, tuned, data = (result[name][figure] for name in result["sets"])
        assert base > tuned > data, figure
    base, tuned, data = (result[name]["fidelity/log_spectrum_error"] for name in result["sets"])
    assert base > 2 * tuned and base > 2 * data
    assert result["base"]["fidelity/high_wavenumber_ratio"] > 2
    assert result["base"]["resolve/median"] < result["base"]["resolve/trivial_median"]


def test_real_data_row_is_its_own_floor_and_finite(result: dict[str, Any], pde: PDE) -> None:
    data = result["data"]
    assert data.keys() == result["base"].keys() == result["tuned"].keys()
    numbers = np.concatenate([np.ravel(value) for value in data.values()])
    assert np.isfinite(numbers).all()
    assert data["num_samples"] == COUNT
    assert data["fidelity/energy_distance_ratio_to_data"] == 1
    assert data["fidelity/energy_distance"] == pytest.approx(data["fidelity/energy_distance_same_law"], rel=0.5)
    for name in pde.operators:
        assert data[f"residual/{name}/over_floor"] == 1
        assert not data[f"residual/{name}/below_floor"]
    assert json.loads(json.dumps(result)) == result


def test_intervals_hold_their_figures(result: dict[str, Any]) -> None:
    for name in result["sets"]:
        for key, (low, high) in ((k, v) for k, v in result[name].items() if k.endswith("_interval")):
            assert low <= result[name][key.removesuffix("_interval")] <= high, key


def test_nothing_happening_is_below_floor_and_named_so(pde: PDE, truth: torch.Tensor) -> None:
    quiet = 1e-4 * torch.ones_like(truth[:COUNT]) + 1e-8 * truth[:COUNT]
    result = evaluate_sets(pde, {"tuned": quiet}, real=truth[COUNT : 3 * COUNT], real_other=truth[3 * COUNT :])
    assert result["tuned"][f"residual/{pde.default_operator}/below_floor"]
    assert result["tuned"]["fidelity/energy_distance_ratio_to_data"] > 2
    assert "below floor" in rendered(result)


def test_a_broken_sample_is_counted_and_infinitely_wrong(pde: PDE, sets: dict[str, torch.Tensor], truth: torch.Tensor) -> None:
    broken = sets["tuned"].clone()
    broken[2, 0, 3, 4] = math.nan
    result = evaluate_sets(pde, {"tuned": broken}, real=truth[COUNT : 3 * COUNT], real_other=truth[3 * COUNT :])
    tuned = result["tuned"]
    assert tuned["num_nonfinite"] == 1
    assert tuned[f"residual/{pde.default_operator}/mean"] == math.inf
    assert math.isfinite(tuned[f"residual/{pde.default_operator}/median"])
    assert math.isnan(tuned["fidelity/energy_distance"])
    assert "1 not finite" in rendered(result)


def test_evaluate_sets_names_bad_input(pde: PDE, sets: dict[str, torch.Tensor], truth: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="same number of samples"):
        evaluate_sets(pde, {**sets, "other": sets["base"][:4]}, real=truth, real_other=truth)
    with pytest.raises(ValueError, match="at least as many samples as each set, 48, got 5"):
        evaluate_sets(pde, sets, real=truth, real_other=truth[:5])
    with pytest.raises(ValueError, match="kept for real data"):
        evaluate_sets(pde, {"data": truth}, real=truth, real_other=truth)
    with pytest.raises(ValueError, match="at least one set"):
        evaluate_sets(pde, {}, real=truth, real_other=truth)


def rendered(result: dict[str, Any]) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160).print(result_table(result))
    return stream.getvalue()


def test_table_shows_every_set_and_the_roles_of_operators(pde: PDE, sets: dict[str, torch.Tensor], truth: torch.Tensor) -> None:
    more = {"guided": sets["base"], **sets}
    text = rendered(evaluate_sets(pde, more, real=truth[COUNT : 3 * COUNT], real_other=truth[3 * COUNT :]))
    header = next(line for line in text.splitlines() if "figure" in line)
    positions = [header.index(name) for name in ("base", "tuned", "guided", "real data")]
    assert positions == sorted(positions)
    assert "residual consistent (rewarded)" in text
    assert "residual simpson (not rewarded)" in text
    assert text.index("consistent") < text.index("simpson") < text.index("paper")


def png_size(path: Path) -> tuple[int, ...]:
    image = imread(path)
    assert np.ptp(image[..., :3]) > 0.5
    return tuple(image.shape[:2])


def test_report_with_guard(tmp_path: Path, pde: PDE, result: dict[str, Any], samples: dict[str, np.ndarray]) -> None:
    history: list[dict[str, Any]] = [
        {"update": i, "residual/consistent/mean": 1 / i, "residual/consistent/median": 0.5 / i, "rollout/sample_ids": [i]}
        for i in range(1, 9)
    ]
    history[3] |= {"guard/residual": 0.2, "guard/amplitude_ratio": 0.99, "guard/energy_ratio": 1.01}
    history[7] |= {"guard/residual": 0.1, "guard/amplitude_ratio": 0.98, "guard/energy_ratio": 1.02}
    history[7] |= {"guard/amplitude_limit": 0.02, "guard/energy_limit": 1.05}
    path = tmp_path / "report.png"
    draw_report(path, pde=pde, history=history, result={**result, "kept_update": 8}, samples=samples)
    assert min(png_size(path)) > 800
    assert [file.name for file in tmp_path.iterdir()] == ["report.png"]


def test_report_with_a_minimal_history_and_a_broken_sample(
    tmp_path: Path, pde: PDE, result: dict[str, Any], samples: dict[str, np.ndarray]
) -> None:
    """No guard rows, short names, one sample of each set, one of them not finite."""
    few = {name: fields[:1].copy() for name, fields in samples.items()}
    few["tuned"][0, 0, 2, 2] = math.nan
    path = tmp_path / "report.png"
    draw_report(path, pde=pde, history=[{"update": 1, "residual/mean": 1.0, "residual/median": 0.5}], result=result, samples=few)
    assert min(png_size(path)) > 800


def test_report_names_missing_sets(tmp_path: Path, pde: PDE, samples: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError, match=r"missing or empty: \['tuned'\]"):
        draw_report(
            tmp_path / "r.png", pde=pde, history=[], result={}, samples={k: v for k, v in samples.items() if k != "tuned"}
        )


def test_samples_round_trip(tmp_path: Path, pde: PDE, sets: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "run" / "samples.h5"
    for _ in range(2):  # a second write replaces the file
        write_samples(path, pde, sets, {"seed": 3, "stream": "evaluation"})
    groups, attributes = read_samples(path), read_attributes(path)
    assert groups.keys() == sets.keys()
    for name, fields in sets.items():
        assert groups[name].dtype == np.float32
        assert np.array_equal(groups[name], fields.numpy())
    assert attributes["env_id"] == pde.env_id
    assert attributes["channels"] == list(pde.channels)
    assert attributes["resolution"] == RESOLUTION
    assert attributes["seed"] == 3
    assert attributes["grid"]["columns"]["layout"] == "periodic"
    assert [file.name for file in path.parent.iterdir()] == ["samples.h5"]


def test_samples_refuse_bad_shapes_and_foreign_files(tmp_path: Path, pde: PDE) -> None:
    with pytest.raises(ValueError, match="expects fields"):
        write_samples(tmp_path / "s.h5", pde, {"base": torch.zeros(2, 1, 4, 4)}, {})
    assert not list(tmp_path.iterdir())
    (tmp_path / "s.h5").write_text("no HDF5")
    with pytest.raises(InvalidDataError, match="not a readable HDF5 file"):
        read_samples(tmp_path / "s.h5")
    h5py.File(tmp_path / "other.h5", "w").close()
    with pytest.raises(InvalidDataError, match="format is None, expected 'pirf_ray-samples-1'"):
        read_attributes(tmp_path / "other.h5")


def test_samples_that_lie_in_another_file_are_refused(pde: PDE, sets: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_samples(tmp_path / "s.h5", pde, {"tuned": sets["tuned"]}, {})
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["data"] = h5py.ExternalLink("private.h5", "/")
    with pytest.raises(InvalidDataError, match=r"'data' is a link into another file, 'private.h5'"):
        read_samples(tmp_path / "s.h5")
