"""Meters: what a computation spends, counted where it happens."""

import torch

from pirf_ray.metrics.cost import Cost, Meter
from tiny_models import tiny_denoiser


def test_the_meter_counts_inside_its_block_only() -> None:
    denoiser, x = tiny_denoiser(), torch.zeros(3, 1, 8, 8)
    denoiser(x, 1.0)
    with Meter() as outer:
        y = denoiser(x, 1.0)
        with Meter() as inner, torch.no_grad():
            denoiser(x[:1], 1.0)
        y.sum().backward()
    denoiser(x, 1.0).sum().backward()
    assert (outer.forwards, outer.gradients) == (4, 3)
    assert (inner.forwards, inner.gradients) == (1, 0)
    assert outer.cost.units == 4 + 2 * 3
    assert outer.seconds >= inner.seconds > 0


def test_costs_add_and_divide() -> None:
    one = Cost(network_forwards=4, network_gradients=2, residual_gradients=1, seconds=3.0)
    assert (one + one).per(4) == Cost(network_forwards=2, network_gradients=1, residual_gradients=0.5, seconds=1.5)
