"""Laws known by stored samples: reading, the two parts of the file, normalization, and what is refused."""

import doctest
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

import envs.pdes.samples as samples
from bare_pdes import CLOUDS_MEAN, CLOUDS_STD, ROWS, clouds, rows_of
from envs.data import datasets
from envs.pdes import REGISTRY, make_pde, register
from envs.pdes.base import NotProvided
from envs.rewards import physics_reward
from registries import restored

TRAIN = 40
"""80 % of ROWS."""


def test_the_example_of_the_docstring_runs() -> None:
    done = doctest.testmod(samples)
    assert done.attempted > 0 and done.failed == 0


def test_hdf5_and_npy_hold_the_same_samples(tmp_path: Path) -> None:
    first, second = (clouds(tmp_path, suffix=suffix)().solve(3, "test", range(10)) for suffix in ("npy", "h5"))
    assert torch.equal(first, second) and first.dtype == torch.float64 and first.shape == (10, 2, 8, 8)


def test_files_of_this_package_are_read(tmp_path: Path) -> None:
    poisson = make_pde("Poisson-v0", 8)
    datasets.write(tmp_path / "poisson.h5", poisson, num_samples=10, seed=0, stream="train")

    class Stored(samples.SampledPDE):
        env_id, equation, units = "Stored-v0", "unknown", "none"
        channels, default_resolution, file = ("f", "phi"), 8, tmp_path / "poisson.h5"

    expected = poisson.solve(0, "train", range(8)).float().double()
    found = Stored().solve(0, "train", range(8))
    order = [int((expected - row).abs().flatten(1).sum(1).argmin()) for row in found]
    assert sorted(order) == list(range(8)) and torch.equal(found, expected[order])


@pytest.mark.parametrize("suffix", ["npy", "h5"])
def test_only_the_requested_rows_are_read(tmp_path: Path, suffix: str) -> None:
    """The file is mapped, not loaded."""
    pde = clouds(tmp_path, suffix=suffix)()
    array = pde._stored._array
    assert isinstance(array, np.memmap if suffix == "npy" else h5py.Dataset)


def test_training_and_other_streams_share_no_row(tmp_path: Path) -> None:
    pde = clouds(tmp_path)()
    for seed in range(3):
        assert sorted(rows_of(pde.solve(seed, "train", range(TRAIN)))) == list(range(TRAIN))
        for stream in ("test", "validation", "calibration"):
            assert sorted(rows_of(pde.solve(seed, stream, range(ROWS - TRAIN)))) == list(range(TRAIN, ROWS))
    assert (pde.available("train"), pde.available("test")) == (TRAIN, ROWS - TRAIN)


def test_samples_are_a_function_of_seed_stream_and_id(tmp_path: Path) -> None:
    """Two permutations of 40 rows are equal with the chance 1/40!."""
    pde = clouds(tmp_path)()
    whole = rows_of(pde.solve(0, "train", range(TRAIN)))
    assert rows_of(pde.solve(0, "train", [7, 3])) == [whole[7], whole[3]]
    assert rows_of(pde.solve(1, "train", range(TRAIN))) != whole
    test, validation = (rows_of(pde.solve(0, stream, range(10))) for stream in ("test", "validation"))
    assert test != validation
    assert len(pde.solve(0, "train", [])) == 0


@pytest.mark.parametrize(("stream", "count", "wrong"), [("train", TRAIN, TRAIN), ("test", 10, 25), ("test", 10, -1)])
def test_more_samples_than_there_are_is_refused(tmp_path: Path, stream: str, count: int, wrong: int) -> None:
    message = f"Clouds-v0 has {count} stored samples for the stream '{stream}', with the ids 0 to {count - 1}; got the id {wrong}"
    with pytest.raises(ValueError, match=message):
        clouds(tmp_path)().solve(0, stream, [0, wrong])


def test_model_units_have_mean_0_and_the_stated_deviation(tmp_path: Path) -> None:
    """Scale and shift have 4 digits: 5e-4 of the deviation .14, and of the mean 3 in units of the deviation 2, .14 * 1.5 * 5e-4."""
    pde = clouds(tmp_path)()
    x = pde.normalizer.to_model(pde.solve(0, "train", range(TRAIN)))
    assert x.std((0, 2, 3), correction=0).tolist() == pytest.approx([samples.MODEL_STD] * 2, rel=1e-3)
    assert x.mean((0, 2, 3)).tolist() == pytest.approx([0.0] * 2, abs=5e-4)
    clear = pde.normalizer
    # 40 fields of 64 values: the standard error of a deviation is 1 / sqrt(2 * 2560) = .014 of it
    assert clear.scale[1] == pytest.approx(samples.MODEL_STD / CLOUDS_STD, rel=0.07)
    assert -clear.shift[1] / clear.scale[1] == pytest.approx(CLOUDS_MEAN, abs=0.2)


def test_the_normalizer_is_measured_once_and_on_training_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls, read = clouds(tmp_path), []
    original = samples.StoredFields.read
    monkeypatch.setattr(samples.StoredFields, "read", lambda self, rows: (read.extend(rows), original(self, rows))[1])
    assert cls().normalizer == cls().normalizer
    assert sorted(read) == list(range(TRAIN))


def test_another_file_is_another_pde(tmp_path: Path) -> None:
    """A model of the old file refuses the new one, since its normalization differs."""
    cls = clouds(tmp_path)
    before = cls()
    scale = before.normalizer.scale
    np.save(cls.path(), 2 * np.load(cls.path()))
    assert cls() != before and cls() == cls()
    assert cls().normalizer.scale[1] == pytest.approx(scale[1] / 2, rel=1e-3)


def test_the_grid_has_the_spacing_of_the_unit_square(tmp_path: Path) -> None:
    grid = clouds(tmp_path, resolution=16)().grid
    assert grid.spacing == (1 / 16, 1 / 16) and grid.periodic == (True, False) and grid.shape == (16, 16)


@pytest.mark.parametrize("suffix", ["npy", "h5"])
def test_a_reader_may_be_sent_to_another_process(tmp_path: Path, suffix: str) -> None:
    stored = clouds(tmp_path, suffix=suffix)()._stored
    expected = stored.read([4, 2])
    assert torch.equal(pickle.loads(pickle.dumps(stored)).read([4, 2]), expected)


def test_a_relative_path_starts_beside_the_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run's processes work in other directories than the command."""
    cls = clouds(tmp_path)
    (tmp_path / "clouds_of_a_test.py").write_text(
        "from envs.pdes.samples import SampledPDE\n\n\nclass Clouds(SampledPDE):\n"
        "    env_id, equation, units = 'Clouds-v0', 'none', 'none'\n"
        "    channels, default_resolution, file = ('depth', 'height'), 8, 'clouds.npy'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    beside = __import__("clouds_of_a_test").Clouds
    monkeypatch.chdir("/")
    assert beside.path() == cls.path()
    assert rows_of(beside().solve(0, "test", [0])) == rows_of(cls().solve(0, "test", [0]))


def broken(folder: Path, fields: np.ndarray, name: str = "broken.npy") -> type[samples.SampledPDE]:
    """Clouds with other fields in their file."""
    cls = clouds(folder)
    cls.file = folder / name
    if name.endswith("npy"):
        np.save(cls.file, fields)
    else:
        cls.file.write_bytes(fields.tobytes())
    return cls


@pytest.mark.parametrize(
    ("fields", "name", "message"),
    [
        (np.zeros((9, 2, 8, 16), "float32"), "broken.npy", r"needs at least 5 fields \(2, 8, 8\), got 9 fields \(2, 8, 16\) in"),
        (np.zeros((9, 1, 8, 8), "float32"), "broken.npy", r"needs at least 5 fields \(2, 8, 8\), got 9 fields \(1, 8, 8\) in"),
        (np.zeros((4, 2, 8, 8), "float32"), "broken.npy", r"needs at least 5 fields \(2, 8, 8\), got 4 fields"),
        (np.zeros((9, 2, 8, 8), "int64"), "broken.npy", r"broken.npy: fields must be real numbers \(n, c, h, w\), got int64"),
        (
            np.zeros((9, 8), "float32"),
            "broken.npy",
            r"broken.npy: fields must be real numbers \(n, c, h, w\), got float32 \(9, 8\)",
        ),
        (np.zeros(9), "broken.h5", r"broken.h5: cannot be read"),
        (np.zeros(9), "broken.csv", r"broken.csv: stored samples must be a .h5, .hdf5 or .npy file"),
    ],
)
def test_a_wrong_file_is_refused_when_the_pde_is_made(tmp_path: Path, fields: np.ndarray, name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        broken(tmp_path, fields, name)()


def test_other_broken_files_are_named(tmp_path: Path) -> None:
    cls = clouds(tmp_path)
    with pytest.raises(ValueError, match=r"needs at least 5 fields \(2, 16, 16\), got 50 fields \(2, 8, 8\)"):
        cls(16)
    cls.file = tmp_path / "nowhere.npy"
    with pytest.raises(ValueError, match=r"nowhere.npy: no such file"):
        cls()
    with h5py.File(tmp_path / "empty.h5", "w") as file:
        file.create_group("fields")
    cls.file = tmp_path / "empty.h5"
    with pytest.raises(ValueError, match=r"empty.h5: cannot be read \(.*not a dataset"):
        cls()


def test_samples_that_are_not_finite_or_never_vary_are_refused(tmp_path: Path) -> None:
    fields = np.random.default_rng(0).normal(size=(10, 2, 8, 8))
    fields[9, 0, 3, 3] = np.nan
    with pytest.raises(ValueError, match=r"broken.npy: sample 9 is not finite"):
        broken(tmp_path, fields)().solve(0, "test", range(2))
    fields[:, 1] = 1.5
    with pytest.raises(ValueError, match=r"Clouds-v0: the channel height has the same value everywhere and cannot be scaled"):
        _ = broken(tmp_path, fields)().normalizer


def test_a_class_without_a_file_is_not_registered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restored(REGISTRY, monkeypatch)
    cls = clouds(tmp_path)
    del cls.file
    with pytest.raises(ValueError, match="Clouds cannot be registered: it does not define file"):
        register(cls)


def test_training_data_are_written_as_a_solvers_are(tmp_path: Path) -> None:
    """What pretraining does first. There are no floors, since there are no operators."""
    pde = clouds(tmp_path)()
    assert datasets.write(tmp_path / "train.h5", pde, num_samples=TRAIN, seed=0, stream="train") == {}
    file = datasets.FieldFile(tmp_path / "train.h5", pde)
    assert sorted(rows_of(file.read(range(TRAIN)))) == list(range(TRAIN))


def test_the_law_has_samples_and_nothing_else(tmp_path: Path) -> None:
    pde = clouds(tmp_path)()
    assert pde.provides("solve") and not pde.provides("resolve") and not pde.provides("marginal")
    with pytest.raises(NotProvided, match=r"Clouds-v0 has no residual operator \(operators\): a residual needs one"):
        pde.residual(pde.solve(0, "test", range(2)), "consistent")
    with pytest.raises(NotProvided, match=r"Clouds-v0 has no residual operator \(operators\): the physics reward needs one"):
        physics_reward(pde)


def test_an_operator_of_a_subclass_is_calibrated_on_all_samples_that_there_are(tmp_path: Path) -> None:
    """10 held-out samples, fewer than the 256 of a solver. The mean square of N(3, 4) is 13."""

    class Measured(clouds(tmp_path)):  # type: ignore[misc]
        default_operator = "size"

        @property
        def operators(self):
            return {"size": lambda fields: fields[:, 1:]}

    pde = Measured()
    (term,) = physics_reward(pde, form="log").terms
    expected = pde.solve(0, "calibration", range(10))[:, 1].square().mean().item()
    assert term.floor == pytest.approx(expected, rel=1e-5) == pytest.approx(13, rel=0.2)
    assert term.reference >= term.floor
