"""The loss of denoising score matching: its weight, and its value for known denoisers."""

import math

import pytest
import torch

from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.losses.denoising import denoising_loss
from tiny_models import RESOLUTION, tiny_network


class Constant(torch.nn.Module):
    """Network with F = value everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return torch.full_like(x, self.value)


def denoiser(sigma_data: float, value: float) -> Denoiser:
    made = Denoiser(tiny_network(), sigma_data)
    made.network = Constant(value)
    return made


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((samples, 1, RESOLUTION, RESOLUTION), dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 20.0])
def test_ideal_gaussian_denoiser_has_loss_one_at_every_sigma(sigma: float) -> None:
    """For data N(0, sd^2) the ideal D is c_skip x (F = 0), and its error s^2 sd^2/(s^2+sd^2) is 1/lambda.

    The loss is the mean of 32,000 squares of a standard normal, whose standard error is sqrt(2 / 32,000).
    """
    sd, count = 0.2, 500
    loss = denoising_loss(denoiser(sd, 0), sd * noise(count), torch.full((count,), sigma, dtype=torch.float64), noise(count, 1))
    assert loss.item() == pytest.approx(1, abs=5 * math.sqrt(2 / (count * RESOLUTION**2)))


@pytest.mark.parametrize("value", [1.0, -3.0])
def test_loss_weighs_a_constant_error_by_lambda(value: float) -> None:
    """With y = 0, no noise and F = v, D is v s sd/sqrt(s^2+sd^2). So lambda D^2 = v^2 at every sigma."""
    for sigmas in ([0.01], [1.0], [30.0], [0.01, 1.0, 30.0]):
        zero = torch.zeros(len(sigmas), 1, RESOLUTION, RESOLUTION)
        assert denoising_loss(denoiser(0.2, value), zero, torch.tensor(sigmas), zero).item() == pytest.approx(value**2, rel=1e-5)
