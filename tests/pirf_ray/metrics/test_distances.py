"""Distances of sets of known laws: equal, shifted, scaled, collapsed, memorized. Derivations stand beside the values."""

import math

import numpy as np
import pytest
import torch

from envs.pdes import make_pde
from pirf_ray.metrics import distances, statistics


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(seed: int, count: int) -> torch.Tensor:
    """A set whose samples are one number each, on a grid of 2 x 2: distances are those of numbers."""
    return gaussian(seed, count, 1, 1, 1).expand(-1, -1, 2, 2)


REFERENCE = gaussian(0, 50, 2, 16, 16) * torch.tensor([1.0, 30.0], dtype=torch.float64)[:, None, None]
SCALE = statistics.amplitude(REFERENCE)[:, None, None]


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
    monkeypatch.setattr(distances, "BLOCK", 7)
    assert distances.energy_distance(a, b) == pytest.approx(expected, rel=1e-9)


def test_same_law() -> None:
    """U-statistic: mean 0. V-statistic: its square has mean (1/n + 1/m) E|X-X'|."""
    n, m, trials = 12, 30, 200
    measured = [distances.compare(gaussian(2 * i, n, 1, 2, 2), gaussian(2 * i + 1, m, 1, 2, 2)) for i in range(trials)]
    unbiased = np.array([f.energy_squared_unbiased for f in measured])
    squared = np.array([f.energy**2 for f in measured])
    predicted = np.mean([f.energy_same_law**2 for f in measured])
    assert abs(unbiased.mean()) < 4 * unbiased.std() / math.sqrt(trials)
    assert predicted > 0.1
    assert abs(squared.mean() - predicted) < 4 * squared.std() / math.sqrt(trials)


def test_collapse_is_seen() -> None:
    a, b = gaussian(0, 200, 1, 4, 4), gaussian(1, 200, 1, 4, 4)
    measured = distances.compare(0.7 * a, b)
    assert measured.energy > 1.5 * distances.energy_distance(a, b)
    assert measured.diversity_ratio == pytest.approx(0.7, rel=0.03)


def test_nan_is_never_zero_distance() -> None:
    a, b = gaussian(0, 8, 1, 4, 4), gaussian(1, 8, 1, 4, 4)
    a[3, 0, 1, 1] = math.nan
    assert math.isnan(distances.energy_distance(a, b))


def test_distances_refuse_other_shapes_and_constant_references() -> None:
    with pytest.raises(ValueError, match="same channels and grid"):
        distances.energy_distance(gaussian(0, 4, 1, 4, 4), gaussian(1, 4, 1, 4, 8))
    with pytest.raises(ValueError, match="channel 0 of the reference set is constant"):
        distances.energy_distance(gaussian(0, 4, 1, 4, 4), torch.ones(4, 1, 4, 4))


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
