"""Every fidelity measure on the same changes of a set: identical, shifted, scaled. Derivations stand beside the values."""

import math
from collections.abc import Callable

import pytest
import torch

from envs.pdes import make_pde
from pirf_ray.metrics import distances, spectra, statistics
from pirf_ray.metrics.evaluation import fidelity_metrics

PERIODIC = (True, True)


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REFERENCE = gaussian(0, 50, 2, 16, 16) * torch.tensor([1.0, 30.0], dtype=torch.float64)[:, None, None]
SCALE = statistics.amplitude(REFERENCE)[:, None, None]

EXACT: dict[str, Callable[[torch.Tensor], float]] = {
    "energy distance": lambda a: distances.energy_distance(a, REFERENCE),
    "MMSE": lambda a: statistics.mean_field_error(a, REFERENCE),
    "SMSE": lambda a: statistics.std_field_error(a, REFERENCE),
    "spectrum error": lambda a: spectra.log_spectrum_error(a, REFERENCE, PERIODIC),
    "nearest": lambda a: distances.nearest_distance(a, REFERENCE),
    "amplitude": lambda a: statistics.amplitude_ratio(a, REFERENCE).log().abs().max().item(),
    "high wavenumbers": lambda a: spectra.high_wavenumber_ratio(a, REFERENCE, PERIODIC).log().abs().max().item(),
    "diversity": lambda a: math.log(distances.diversity(a, REFERENCE) / distances.diversity(REFERENCE, REFERENCE)),
}


@pytest.mark.parametrize("measure", EXACT)
def test_identical_sets_differ_in_nothing(measure: str) -> None:
    """Whatever their order. Distances are by cdist, whose zeros are rounding of about 1e-7 of the distances themselves."""
    shuffled = REFERENCE[torch.randperm(50, generator=torch.Generator().manual_seed(1))]
    assert EXACT[measure](shuffled) == pytest.approx(0, abs=2e-6)


@pytest.mark.parametrize("shift", [0.1, 2.0])
def test_a_shift_by_a_constant(shift: float) -> None:
    """a = b + shift s_c: MMSE is the mean over channels of shift^2; standard deviations, differences within the set and every mode
    but k = 0 stay; the nearest of b to b_i + shift is at most shift away."""
    a = REFERENCE + shift * SCALE
    assert EXACT["MMSE"](a) == pytest.approx(shift**2)
    for unmoved in ("SMSE", "amplitude", "diversity", "spectrum error", "high wavenumbers"):
        assert EXACT[unmoved](a) == pytest.approx(0, abs=1e-6), unmoved
    assert 0 < EXACT["nearest"](a) <= shift * (1 + 1e-9)


@pytest.mark.parametrize("factor", [0.5, 1.3])
def test_a_factor(factor: float) -> None:
    """a = factor b: amplitude, diversity factor; power factor^2, so 2 |log10 factor| decades in every bin; the standard deviation
    field is off by |factor - 1| std_b, the mean field by |factor - 1| mean_b."""
    a = factor * REFERENCE
    assert EXACT["amplitude"](a) == pytest.approx(abs(math.log(factor)))
    assert EXACT["diversity"](a) == pytest.approx(math.log(factor), abs=1e-6)
    assert EXACT["spectrum error"](a) == pytest.approx(2 * abs(math.log10(factor)), abs=1e-6)
    assert EXACT["high wavenumbers"](a) == pytest.approx(2 * abs(math.log(factor)), abs=1e-6)
    assert EXACT["SMSE"](a) == pytest.approx((factor - 1) ** 2 * (REFERENCE.std(0) / SCALE).square().mean().item())
    assert EXACT["MMSE"](a) == pytest.approx((factor - 1) ** 2 * (REFERENCE.mean(0) / SCALE).square().mean().item())


def test_the_metrics_of_a_shifted_and_scaled_set_hang_together() -> None:
    """Through the function that the reports use: each number under its own name."""
    pde = make_pde("Burgers-v0", 16)
    b = pde.solve(0, "measures", range(64))
    unit = statistics.amplitude(b)[0].item()
    metrics = fidelity_metrics(pde, 0.8 * b, b)
    assert metrics.amplitude_ratio == metrics.amplitude_ratios["u"] == pytest.approx(0.8)
    assert metrics.diversity_ratio == pytest.approx(0.8)
    assert metrics.high_wavenumber_ratio == metrics.high_wavenumber_ratios["u"] == pytest.approx(0.64, rel=1e-3)
    assert metrics.energy_distance == distances.energy_distance(0.8 * b, b)
    assert metrics.nearest_training_distance is None
    assert fidelity_metrics(pde, b + 0.5 * unit, b).mean_field_error == pytest.approx(0.25)


def test_the_channel_farthest_from_one_stands_for_all() -> None:
    pde = make_pde("Darcy-v0", 16)
    b = pde.solve(0, "measures", range(32))
    metrics = fidelity_metrics(pde, b * torch.tensor([1.2, 0.5])[:, None, None], b)
    assert list(metrics.amplitude_ratios) == list(pde.channels)
    assert list(metrics.amplitude_ratios.values()) == pytest.approx([1.2, 0.5])
    assert metrics.amplitude_ratio == pytest.approx(0.5)
