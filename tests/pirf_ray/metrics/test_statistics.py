"""Amplitudes, mean and standard-deviation fields, bootstrap intervals."""

import pytest
import torch

from pirf_ray.metrics import statistics


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


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
