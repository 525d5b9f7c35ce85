"""Sampler steps: their order, the last step and their gradients."""

import itertools
import math

import numpy as np
import pytest
import torch

from envs.schedules import karras_schedule
from envs.transitions import euler_step, heun_step, slope

SIGMA_DATA = 0.5


def gaussian_denoiser(x, sigma):
    """Exact denoiser of data N(0, sd^2): the ODE's solution is x(s) = x(S) sqrt((s^2 + sd^2)/(S^2 + sd^2))."""
    return x * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)


def integrate(x, sigmas, heun):
    for sigma, following in itertools.pairwise(sigmas):
        here = slope(x, gaussian_denoiser(x, sigma), sigma)
        predicted = euler_step(x, here, sigma, following)
        if heun:
            there = slope(predicted, gaussian_denoiser(predicted, following), following)
            x = heun_step(x, here, there, sigma, following)
        else:
            x = predicted
    return x


@pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
def test_sampler_step_has_its_order_on_gaussian_data(heun, order):
    start = torch.tensor([[[[3.0, -1.0]]]], dtype=torch.float64)
    truth = start * math.sqrt((0.1**2 + SIGMA_DATA**2) / (10**2 + SIGMA_DATA**2))
    counts = np.array([40, 80, 160, 320])
    errors = []
    for count in counts:
        sigmas = karras_schedule(int(count) + 1, sigma_min=0.1, sigma_max=10.0)[:-1].tolist()
        errors.append((integrate(start, sigmas, heun) - truth).abs().max().item())
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.12)


def test_last_euler_step_returns_the_denoised_prediction():
    x, denoised = torch.randn(2, 2, 1, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(euler_step(x, slope(x, denoised, 0.002), 0.002, 0.0), denoised, rtol=0, atol=1e-13)


@pytest.mark.parametrize("heun", [False, True])
def test_sampler_steps_are_differentiable(heun):
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: integrate(v, [2.0, 1.0, 0.3], heun), x)
