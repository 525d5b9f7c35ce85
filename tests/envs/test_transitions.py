"""Sampler steps: their order, the last step, their gradients, and the law of a stochastic step."""

import itertools
import math

import numpy as np
import pytest
import torch

from envs.numerics.gaussian import GaussianLaw, cosine_basis
from envs.schedules import karras_schedule
from envs.transitions import (
    StochasticStep,
    euler_step,
    heun_step,
    multistep_step,
    slope,
    step_coefficients,
    step_std,
    stochastic_mean,
)

SIGMA_DATA = 0.5


def gaussian_denoiser(x, sigma):
    """Exact denoiser of data N(0, sd^2): the ODE's solution is x(s) = x(S) sqrt((s^2 + sd^2)/(S^2 + sd^2))."""
    return x * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)


def stochastic_step(x, denoised, sigma, sigma_next, *, eta, law=None):
    """Law of the next state, as the process puts it together from its mean and its standard deviation."""
    mean = stochastic_mean(x, denoised, sigma, sigma_next, eta=eta)
    return StochasticStep(mean=mean, std=step_std(sigma, sigma_next, eta=eta, law=law), law=law)


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


def draws(count):
    return torch.randn(count, 3, 2, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


LAW = GaussianLaw(
    mean=torch.zeros(2, 4, 5, dtype=torch.float64),
    variance=torch.logspace(-2, 1, 40, dtype=torch.float64).reshape(2, 4, 5),
    basis=cosine_basis(4, 5),
)


def test_multistep_step_is_exact_if_the_prediction_is_linear_in_ln_sigma():
    """x' = r x + int (s'/s^2) D ds from s' to s, r = s'/s. With D = a - b ln s the integral is that of the extrapolation, which
    takes D at its middle: the difference is of third order in h = ln(s/s'). So halving h divides it by 8, to 5 %."""
    a, b, x = (torch.full((1, 1, 1, 1), v, dtype=torch.float64) for v in (0.3, 0.7, 2.0))

    def error(h):
        before, sigma, after = math.exp(h), 1.0, math.exp(-h)
        found = multistep_step(x, a, a - b * h, before, sigma, after)  # D(1) = a, D(e^h) = a - b h
        # int_{e^-h}^1 e^-h s^-2 (a - b ln s) ds, by parts
        exact = after * x + a * (1 - after) + b * (h - 1 + after)
        return (found - exact).abs().item()

    assert error(0.02) / error(0.01) == pytest.approx(8, rel=0.05)


@pytest.mark.parametrize("eta", [1.0, 0.5, 0.01])
def test_a_stochastic_step_keeps_the_noise_level(eta):
    """The error x - D of standard deviation s goes to a s, and a^2 s^2 + c^2 = s'^2. With eta = 1 the old error keeps (s'/s)^2."""
    for sigma, following in itertools.pairwise(karras_schedule(6)[:-1].tolist()):
        c, a = step_coefficients(sigma, following, eta)
        assert c == pytest.approx(eta * following * math.sqrt(1 - (following / sigma) ** 2))
        assert a**2 * sigma**2 + c**2 == pytest.approx(following**2)
        if eta == 1:
            assert a == pytest.approx((following / sigma) ** 2)


def test_a_stochastic_step_with_little_noise_is_eulers_step():
    """c = eta s' and a = s'/s (1 + O(eta^2)), so the draws differ by eta |n| s' and less."""
    x, denoised, noise = draws(3)
    step = stochastic_step(x, denoised, 2.0, 1.0, eta=1e-9)
    torch.testing.assert_close(step.draw(noise), euler_step(x, slope(x, denoised, 2.0), 2.0, 1.0), rtol=0, atol=1e-8)


def full_covariance(law, sigma, following, eta):
    """Covariance (40, 40) of a step, from matrices: c^2 + (1 - a)^2 (C^-1 + s^-2)^-1 with C in the basis of the cells."""
    c, a = step_coefficients(sigma, following, eta)
    cells = torch.eye(40, dtype=torch.float64).reshape(40, 2, 4, 5)
    modes = law.basis.to_modes(cells).reshape(40, 40)
    covariance = modes @ torch.diag(law.variance.flatten()) @ modes.T
    known = torch.linalg.inv(torch.linalg.inv(covariance) + torch.eye(40, dtype=torch.float64) / sigma**2)
    return c**2 * torch.eye(40, dtype=torch.float64) + (1 - a) ** 2 * known


@pytest.mark.parametrize("eta", [1.0, 0.4])
@pytest.mark.parametrize("law", [None, LAW])
def test_log_densities_are_those_of_the_normal_law_up_to_a_constant(law, eta):
    """Against torch.distributions. A difference of two states has no constant."""
    x, denoised, first, second = draws(4)
    step = stochastic_step(x, denoised, 2.0, 0.7, eta=eta, law=law)
    c, a = step_coefficients(2.0, 0.7, eta)
    torch.testing.assert_close(step.mean, denoised + a * (x - denoised))
    covariance = full_covariance(LAW, 2.0, 0.7, eta) if law else c**2 * torch.eye(40, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(step.mean.flatten(1), covariance)
    expected = normal.log_prob(first.flatten(1)) - normal.log_prob(second.flatten(1))
    torch.testing.assert_close(step.log_density(first) - step.log_density(second), expected)
    assert step.log_density(first).shape == (3,)


@pytest.mark.parametrize("law", [None, LAW])
def test_draws_of_a_step_have_its_covariance_and_give_their_noise_back(law):
    """A draw is linear in the noise: the images of the unit noises give the covariance without sampling."""
    x, denoised, noise = draws(3)
    step = stochastic_step(x, denoised, 2.0, 0.7, eta=0.8, law=law)
    torch.testing.assert_close(step.noise(step.draw(noise)), noise)
    torch.testing.assert_close(step.log_density(step.draw(noise)), -0.5 * noise.square().flatten(1).sum(1))
    units = torch.eye(40, dtype=torch.float64).reshape(40, 2, 4, 5)
    still = stochastic_step(0 * units, 0 * units, 2.0, 0.7, eta=0.8, law=law)
    root = still.draw(units).flatten(1)
    c, _ = step_coefficients(2.0, 0.7, 0.8)
    expected = full_covariance(LAW, 2.0, 0.7, 0.8) if law else c**2 * torch.eye(40, dtype=torch.float64)
    torch.testing.assert_close(root.T @ root, expected)


@pytest.mark.parametrize("law", [None, LAW])
def test_log_densities_are_differentiable_in_the_prediction(law):
    x, denoised, after = (part[:1] for part in draws(3))

    def log_density(prediction):
        return stochastic_step(x, prediction, 2.0, 0.7, eta=0.8, law=law).log_density(after)

    assert torch.autograd.gradcheck(log_density, denoised.clone().requires_grad_())


def test_float32_states_keep_their_type():
    x, denoised, noise = draws(3).float()
    for law in (None, LAW):
        step = stochastic_step(x, denoised, 2.0, 0.7, eta=0.8, law=law)
        assert step.draw(noise).dtype == step.log_density(x).dtype == torch.float32
