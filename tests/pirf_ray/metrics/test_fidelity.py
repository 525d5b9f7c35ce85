"""Every fidelity measure on sets of known laws: identical, shifted, scaled, blurred, collapsed. Derivations stand beside the values."""

import math
from collections.abc import Callable

import pytest
import torch

from envs.pdes import make_pde
from pirf_ray.metrics import distances, spectra, statistics
from pirf_ray.metrics.results import fidelity_figures

PERIODIC = (True, True)


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(seed: int, count: int) -> torch.Tensor:
    """A set whose samples are one number each, on a grid of 2 x 2: distances are those of numbers."""
    return gaussian(seed, count, 1, 1, 1).expand(-1, -1, 2, 2)


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


def test_a_shift_of_gaussian_numbers() -> None:
    """X ~ N(d, 1), Y ~ N(0, 1): X - Y ~ N(d, 2), E|N(d, v)| = sqrt(2 v / pi) exp(-d^2 / 2v) + d erf(d / sqrt(2 v)), so
    ED^2 = 2 E|N(d, 2)| - 2 E|N(0, 2)|. Unbiased estimate; its standard error by repetition over 20 pairs of sets."""
    d, v = 1.0, 2.0
    folded = math.sqrt(2 * v / math.pi) * math.exp(-(d**2) / (2 * v)) + d * math.erf(d / math.sqrt(2 * v))
    expected = 2 * folded - 2 * math.sqrt(2 * v / math.pi)
    values = torch.tensor(
        [distances.energy_distance_squared_unbiased(numbers(2 * i, 300) + d, numbers(2 * i + 1, 300)) for i in range(20)]
    )
    assert abs(values.mean().item() - expected) < 4 * values.std().item() / math.sqrt(20) + 0.01  # the unit is the sample's std
    assert values.std().item() / math.sqrt(20) < 0.05 * expected


def test_a_scale_of_gaussian_numbers() -> None:
    """X ~ N(0, s^2), Y ~ N(0, 1): E|X-Y| = sqrt(2 (s^2 + 1) / pi), E|X-X'| = 2 s / sqrt(pi), E|Y-Y'| = 2 / sqrt(pi)."""
    s = 0.5
    expected = 2 * math.sqrt(2 * (s**2 + 1) / math.pi) - 2 * (s + 1) / math.sqrt(math.pi)
    values = torch.tensor(
        [distances.energy_distance_squared_unbiased(s * numbers(2 * i, 300), numbers(2 * i + 1, 300)) for i in range(20)]
    )
    assert abs(values.mean().item() - expected) < 4 * values.std().item() / math.sqrt(20) + 0.01
    assert values.std().item() / math.sqrt(20) < 0.1 * expected


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


def blurred(x: torch.Tensor) -> torch.Tensor:
    """(x_{j-1} + 2 x_j + x_{j+1}) / 4 along columns, periodic: transfer function (1 + cos(2 pi k / n)) / 2."""
    return (x.roll(1, -1) + 2 * x + x.roll(-1, -1)) / 4


def test_a_blur_is_its_transfer_function() -> None:
    """One-sided spectra along the columns are multiplied by its square; all but the smallest scales keep their power."""
    k = torch.arange(9, dtype=torch.float64)
    transfer = ((1 + torch.cos(2 * math.pi * k / 16)) / 2).square()
    torch.testing.assert_close(spectra.spectrum(blurred(REFERENCE)), transfer * spectra.spectrum(REFERENCE))


def test_a_blur_in_radial_bins() -> None:
    """Fields that vary along columns only: the radial bin k then holds (besides zeros) mode k alone, so the error is the root
    mean square over k = 1..n/2-1 of 2 log10 of the transfer function; its zero at Nyquist is cut by the power floor."""
    lines = gaussian(3, 50, 1, 1, 16).expand(-1, -1, 16, -1)
    k = torch.arange(1, 9, dtype=torch.float64)
    transfer = ((1 + torch.cos(2 * math.pi * k / 16)) / 2).square()
    power = spectra.spectrum(lines)[0, 1:] / 2
    power[-1] *= 2  # Nyquist is one mode, the others are two
    in_bin = torch.tensor([_modes_in_bin(int(i)) for i in k], dtype=torch.float64)
    mean = torch.where(k < 8, 2 * power, power) / in_bin
    floor = spectra.POWER_FLOOR * mean.max()
    decades = torch.log10((mean * transfer + floor) / (mean + floor))
    expected = decades.square().mean().sqrt().item()
    assert spectra.log_spectrum_error(blurred(lines), lines, PERIODIC) == pytest.approx(expected, rel=1e-6)


def _modes_in_bin(k: int) -> int:
    """Modes of a 16 x 16 grid whose radial wavenumber rounds to k."""
    wavenumbers = [i if i < 8 else i - 16 for i in range(16)]
    return sum(round(math.hypot(i, j)) == k for i in wavenumbers for j in wavenumbers)


def test_a_blur_in_the_high_wavenumbers_of_white_noise() -> None:
    """White noise has equal power in every mode: the ratio is the mean squared transfer over the high modes, whose sample mean over
    m = 200 fields x about 200 modes has a relative standard error of about sqrt(1 / 40 000) times the modes' spread: under 2 %."""
    white = gaussian(4, 200, 1, 16, 16)
    wavenumbers = torch.tensor([i if i < 8 else i - 16 for i in range(16)], dtype=torch.float64)
    radius = torch.hypot(wavenumbers[:, None], wavenumbers[None, :]) / 8
    transfer = ((1 + torch.cos(2 * math.pi * wavenumbers / 16)) / 2).square().expand(16, 16)
    expected = transfer[radius > 0.5].mean().item()
    assert spectra.high_wavenumber_ratio(blurred(white), white, PERIODIC)[0].item() == pytest.approx(expected, rel=0.02)


def test_a_model_that_knows_half_of_the_data() -> None:
    """b: half of the samples are +p, half -p (std of p is 1: distance 2 between the halves); a: all +p. Over all pairs
    E|X-Y| = 1, E|X-X'| = 0, E|Y-Y'| = 1, so ED^2 = 1; a has no diversity, and every sample of a is in b."""
    pattern = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(8).reshape(1, 1, 4, 4)
    b = torch.cat([pattern.expand(10, -1, -1, -1), -pattern.expand(10, -1, -1, -1)])
    unit = statistics.amplitude(b)[0].item()  # sqrt(n/(n-1)) of it: the sample standard deviation
    a = pattern.expand(8, -1, -1, -1)
    assert distances.energy_distance(a, b) ** 2 == pytest.approx(1 / unit, rel=1e-6)
    assert distances.diversity(a, b) == pytest.approx(0, abs=1e-6)
    assert distances.nearest_distance(a, b) == pytest.approx(0, abs=1e-6)


def test_memorized_training_samples_are_at_distance_zero() -> None:
    """New samples are not: of n independent Gaussian fields of p values the nearest is about sqrt(2) away, less the reach of the
    minimum; with p = 512 distances concentrate within sqrt(1 / p) = 4 %."""
    memorized, new = REFERENCE[:5], gaussian(9, 5, 2, 16, 16) * SCALE
    assert distances.nearest_distance(memorized, REFERENCE) == pytest.approx(0, abs=1e-6)
    assert distances.nearest_distance(new, REFERENCE) == pytest.approx(math.sqrt(2), rel=0.15)


def test_the_marginal_sees_what_the_joint_fields_hide() -> None:
    """Burgers with its first rows halved: of 16 rows one is changed, which the joint distance hardly sees."""
    pde = make_pde("Burgers-v0", 16)
    b, other = pde.solve(0, "measures", range(200)), pde.solve(0, "measures other", range(200))
    a = other.clone()
    a[:, :, 0] *= 0.5
    joint = distances.energy_distance(a, b) / distances.energy_distance(other, b)
    marginal = distances.marginal_energy_distance(pde, a, b) / distances.marginal_energy_distance(pde, other, b)
    assert marginal > 1.5 > joint > 0.9


def test_the_figures_of_a_shifted_and_scaled_set_hang_together() -> None:
    """Through the function that the reports use: each figure under its own name."""
    pde = make_pde("Burgers-v0", 16)
    b = pde.solve(0, "measures", range(64))
    unit = statistics.amplitude(b)[0].item()
    figures = fidelity_figures(pde, 0.8 * b, b)
    assert figures["fidelity/amplitude_ratio"] == figures["fidelity/amplitude_ratio/u"] == pytest.approx(0.8)
    assert figures["fidelity/diversity_ratio"] == pytest.approx(0.8)
    assert figures["fidelity/high_wavenumber_ratio"] == pytest.approx(0.64, rel=1e-3)
    assert fidelity_figures(pde, b + 0.5 * unit, b)["fidelity/mean_field_error"] == pytest.approx(0.25)
