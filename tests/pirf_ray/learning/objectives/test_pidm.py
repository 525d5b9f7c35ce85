"""PIDM as an objective: the loss, its gradient, its estimates, its units."""

import pytest
import torch

from data_training import CONTEXT, PDE8, data_batch, policies_of
from envs.common.checks import ConfigError
from envs.numerics import seeding
from envs.pdes.base import NotProvided
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.diffusion.losses.denoising import denoising_loss
from pirf_ray.learning.objectives.denoising import noised_data
from pirf_ray.learning.objectives.pidm import PIDM, PIDMSettings, noise_slope
from pirf_ray.metrics.cost import Meter
from tiny_models import tiny_denoiser

ESTIMATES = ("mean", "sample")


def objective(**settings: object) -> PIDM:
    return PIDM(PIDMSettings(**settings), CONTEXT)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_at_weight_zero_the_gradient_is_the_diffusion_losss(estimate: str) -> None:
    """The same mean in another order: float32 rounding."""
    batch, policies = data_batch(), policies_of(tiny_denoiser())
    own = objective(pidm_weight=0.0, pidm_estimate=estimate)
    denoiser = policies.tuned.tuned
    data = noised_data(batch, own.settings, "pidm")
    noise = (data.x - data.y) / data.sigma[:, None, None, None]
    losses = own.loss(batch, policies, None).value, denoising_loss(denoiser, data.y, data.sigma, noise)
    gradients = [torch.autograd.grad(loss, list(denoiser.parameters())) for loss in losses]
    for mine, plain in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, plain, rtol=1e-3, atol=1e-4 * plain.abs().max().item())


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_the_residual_term_is_the_weighted_residual_of_the_estimate(estimate: str) -> None:
    """The difference to weight 0, by hand: w lambda(s) r(x_0) / q, mean over samples."""
    batch, policies = data_batch(), policies_of(tiny_denoiser())
    denoiser = policies.tuned.tuned
    with torch.no_grad():
        whole, plain = (objective(pidm_weight=w, pidm_estimate=estimate).loss(batch, policies, None) for w in (0.5, 0.0))
        data = noised_data(batch, PIDMSettings(), "pidm")
        x0 = denoiser(data.x, data.sigma)
        if estimate == "sample":  # Euler's step of dx/ds = (x - D)/s from s to s/2
            s = data.sigma[:, None, None, None]
            x0 = denoiser(data.x - 0.5 * s * ((data.x - x0) / s), 0.5 * data.sigma)
        residual = PDE8.residual(PDE8.normalizer.to_physical(x0), "consistent")
    weight = (data.sigma**2 + 0.14**2) / (data.sigma * 0.14) ** 2
    expected = 0.5 * (weight * residual / noise_slope(PDE8)).mean()
    torch.testing.assert_close(whole.value - plain.value, expected, rtol=1e-3, atol=1e-4 * whole.value.item())
    torch.testing.assert_close(whole.violations["consistent"], residual, rtol=1e-3, atol=0)


class Gaussian(AbstractDenoiser):
    """The exact denoiser of data N(0, sd^2): D(x; s) = sd^2 / (sd^2 + s^2) x."""

    sigma_data = 0.14

    def forward(self, x, sigma, condition=None):
        s = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1)
        return self.sigma_data**2 / (self.sigma_data**2 + s**2) * x


def test_the_sampled_estimate_of_gaussian_data() -> None:
    """Euler from s to s/2 leaves x (1 + a)/2 with a = sd^2/(sd^2 + s^2); then times b = sd^2/(sd^2 + s^2/4)."""
    batch, denoiser = data_batch(), Gaussian()
    data = noised_data(batch, PIDMSettings(), "pidm")
    s = data.sigma[:, None, None, None]
    a, b = 0.14**2 / (0.14**2 + s**2), 0.14**2 / (0.14**2 + s**2 / 4)
    estimate = objective(pidm_estimate="sample").estimate(denoiser, data, denoiser(data.x, data.sigma), batch)
    torch.testing.assert_close(estimate, data.x * (1 + a) / 2 * b)


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_the_loss_has_the_gradient_of_finite_differences(estimate: str) -> None:
    """Central differences in float64 along a random direction of the weights: error O(h^2), h = 1e-6."""
    batch, policies = data_batch(size=2, dtype=torch.float64), policies_of(tiny_denoiser(dtype=torch.float64))
    own = objective(pidm_weight=0.7, pidm_estimate=estimate)
    parameters = list(policies.tuned.tuned.parameters())
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def loss() -> torch.Tensor:
        return own.loss(batch, policies, None).value

    slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad(loss(), parameters), direction, strict=True))
    values = []
    for h in (1e-6, -1e-6):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += h * d
            values.append(loss())
            for p, d in zip(parameters, direction, strict=True):
                p -= h * d
    torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-4, atol=1e-4)


def test_the_slope_is_what_noise_adds() -> None:
    """Mean residual of exact fields with noise e is floor + slope e^2 for small e; probed at twice the probe's noise."""
    x = PDE8.normalizer.to_model(PDE8.solve(1, "slope", range(64)))
    noisy = x + 2e-3 * seeding.normal(1, "slope noise", range(64), PDE8.shape)
    means = [PDE8.residual(PDE8.normalizer.to_physical(f), "consistent").mean().item() for f in (x, noisy)]
    assert (means[1] - means[0]) / 2e-3**2 == pytest.approx(noise_slope(PDE8), rel=0.1)


@pytest.mark.parametrize(("weight", "estimate", "each"), [(0.1, "mean", 1), (0.1, "sample", 2), (0.0, "sample", 1)])
def test_metered_cost_is_the_stated_cost(weight: float, estimate: str, each: int) -> None:
    batch, policies, own = data_batch(), policies_of(tiny_denoiser()), objective(pidm_weight=weight, pidm_estimate=estimate)
    with Meter() as meter:
        own.loss(batch, policies, None).value.backward()
    stated = own.cost(batch)
    assert meter.cost.network_forwards == stated.network_forwards == 16 * each
    assert meter.cost.network_gradients == stated.network_gradients == 16 * each
    assert meter.cost.residual_gradients == (16 if weight else 0)


def test_a_negative_weight_and_a_pde_without_its_parts_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="--pidm-weight must not be negative, got -1"):
        PIDMSettings(pidm_weight=-1.0)
    for part, words in (("solve", "solver"), ("operators", "residual operator")):
        monkeypatch.setattr(type(PDE8), "provides", lambda self, name, part=part: name != part)
        with pytest.raises(NotProvided, match=rf"Burgers-v0 has no {words} \({part}\): --objective pidm needs one"):
            objective()
