"""Meters: what a computation spends, counted where it happens."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from envs.numerics.conditions import Condition
from pirf_ray.diffusion.denoiser import AbstractDenoiser, Denoiser
from pirf_ray.metrics.cost import Cost, Meter, count_residual_gradients
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


class Around(AbstractDenoiser):
    """A denoiser around another, which it calls ``calls`` times."""

    def __init__(self, inner: AbstractDenoiser, calls: int = 1) -> None:
        super().__init__()
        self.inner, self.calls, self.sigma_data = inner, calls, inner.sigma_data

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None) -> torch.Tensor:
        for _ in range(self.calls):
            x = self.inner(x, sigma, condition)
        return x


class Scaling(AbstractDenoiser):
    """A denoiser without a network."""

    sigma_data = 1.0

    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None) -> torch.Tensor:
        return self.factor * x


@pytest.mark.parametrize("denoiser", [Around(tiny_denoiser()), Around(Around(tiny_denoiser(), calls=2)), Scaling()])
def test_any_denoiser_is_one_evaluation_whatever_is_inside_it(denoiser: AbstractDenoiser) -> None:
    with Meter() as meter:
        denoiser(torch.ones(3, 1, 8, 8), 1.0, condition={"y": torch.zeros(3, 1)}).sum().backward()
    assert (meter.forwards, meter.gradients) == (3, 3)


def test_parts_of_a_network_are_no_evaluations() -> None:
    denoiser = tiny_denoiser()
    with Meter() as meter, torch.no_grad():
        denoiser.network(torch.ones(3, 1, 8, 8), torch.zeros(3))
    assert meter.forwards == 0


def test_an_evaluation_that_fails_is_counted_and_the_next_is_too() -> None:
    """The error passes through two denoisers, one inside the other."""
    denoiser = Around(tiny_denoiser())
    with Meter() as meter:
        with pytest.raises(ValueError, match="expected x"):
            denoiser(torch.ones(2, 1, 4, 4), 1.0)
        denoiser(torch.ones(3, 1, 8, 8), 1.0)
    assert meter.forwards == 5


def test_a_recomputed_evaluation_counts_again() -> None:
    """Gradient checkpointing computes the forward pass once more in the backward pass."""
    denoiser: Denoiser = tiny_denoiser()
    with Meter() as meter:
        checkpoint(denoiser, torch.ones(2, 1, 8, 8), 1.0, use_reentrant=False).sum().backward()
        denoiser(torch.ones(1, 1, 8, 8), 1.0)
    assert (meter.forwards, meter.gradients) == (5, 2)


def test_two_gradients_through_one_evaluation_count_twice() -> None:
    denoiser, x = tiny_denoiser(), torch.ones(2, 1, 8, 8)
    with Meter() as meter:
        y = denoiser(x, 1.0)
        y.sum().backward(retain_graph=True)
        y.square().sum().backward()
    assert (meter.forwards, meter.gradients) == (2, 4)


def test_gradients_of_a_residual_count_for_every_active_meter() -> None:
    x = torch.ones(4, requires_grad=True)
    with Meter() as outer, Meter() as inner:
        residual = x.square()
        count_residual_gradients(residual)
        residual.sum().backward()
    assert (outer.residual_gradients, inner.residual_gradients) == (4, 4)
    count_residual_gradients(x.square())  # without a meter nothing is hooked


def test_costs_add_and_divide() -> None:
    one = Cost(network_forwards=4, network_gradients=2, residual_gradients=1, seconds=3.0)
    assert (one + one).per(4) == Cost(network_forwards=2, network_gradients=1, residual_gradients=0.5, seconds=1.5)
