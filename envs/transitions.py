"""Pure, differentiable sampler steps. The caller decides on ``no_grad``.

Deterministic steps solve the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma. Sources: Karras et al. 2022 (arXiv
2206.00364), algorithm 1 without churn; Lu et al. 2022 (arXiv 2211.01095), DPM-Solver++(2M) in EDM's sigma.

A stochastic step draws x' ~ N(m, c^2) with eta in (0, 1] (Song et al. 2021, arXiv 2010.02502, in EDM's sigma):

    c = eta s' sqrt(1 - (s'/s)^2),   a = sqrt(s'^2 - c^2) / s,   m = D + a (x - D)

It is a bridge from a draw of x_0, but D is the mean of x_0. So the chain ends with too little variance. The covariance that is
missing is (1 - a)^2 S(s), with S(s) the covariance of x_0 given the state. With it the chain is exact for a Gaussian law at any
number of steps.
"""

import math
from dataclasses import dataclass

import torch

from envs.numerics.gaussian import GaussianLaw


def slope(x: torch.Tensor, denoised: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return dx/dsigma (b, c, h, w) at the state x (b, c, h, w) and sigma, from the denoised prediction."""
    return (x - denoised) / sigma


def euler_step(x: torch.Tensor, slope_here: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
    """Return x + (sigma_next - sigma) slope. The order is 1."""
    return x + (sigma_next - sigma) * slope_here


def heun_step(
    x: torch.Tensor, slope_here: torch.Tensor, slope_next: torch.Tensor, sigma: float, sigma_next: float
) -> torch.Tensor:
    """Return x + (sigma_next - sigma) times the mean of the slopes at both ends of the step. The order is 2."""
    return x + (sigma_next - sigma) * 0.5 * (slope_here + slope_next)


def multistep_step(
    x: torch.Tensor, denoised: torch.Tensor, previous: torch.Tensor, sigma_before: float, sigma: float, sigma_next: float
) -> torch.Tensor:
    """Return the DPM-Solver++(2M) step from sigma to sigma_next. The order is 2.

    ``previous`` is the denoised prediction at sigma_before, one step earlier.

        x' = (s'/s) x + (1 - s'/s) [D + (D - D_before) h / (2 h_before)],   h = ln(s/s'), h_before = ln(s_before/s)
    """
    ratio = sigma_next / sigma
    weight = math.log(sigma / sigma_next) / (2 * math.log(sigma_before / sigma))
    return ratio * x + (1 - ratio) * (denoised + weight * (denoised - previous))


@dataclass(frozen=True, kw_only=True, eq=False)
class StochasticStep:
    """Law N(mean, Sigma) of the next state; Sigma is std^2, or diagonal in a law's basis."""

    mean: torch.Tensor
    """Mean (b, c, h, w)."""
    std: float | torch.Tensor
    """Standard deviation of each entry, or (c, h, w) of each mode."""
    law: GaussianLaw | None = None
    """Law whose basis the modes have. None: ``std`` is a number."""

    def draw(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the next state (b, c, h, w) from standard normal noise (b, c, h, w)."""
        if self.law is None or not isinstance(self.std, torch.Tensor):
            return self.mean + self.std * noise
        return self.mean + self.law.basis.to_fields(self.std.to(noise) * noise)

    def noise(self, x: torch.Tensor) -> torch.Tensor:
        """Return the standard normal noise (b, c, h, w) with which ``draw`` gives x."""
        if self.law is None or not isinstance(self.std, torch.Tensor):
            return (x - self.mean) / self.std
        return self.law.basis.to_modes(x - self.mean) / self.std.to(x)

    def scaled(self, gradient: torch.Tensor) -> torch.Tensor:
        """Return Sigma^(1/2) gradient (b, c, h, w) in the coordinates of ``noise``, for a gradient by the next state."""
        if self.law is None or not isinstance(self.std, torch.Tensor):
            return self.std * gradient
        return self.std.to(gradient) * self.law.basis.to_modes(gradient)

    def log_density(self, x: torch.Tensor) -> torch.Tensor:
        """Return ln N(x; mean, Sigma) (b,), summed over dimensions, without the constant that the std alone decides."""
        return -0.5 * self.noise(x).square().flatten(1).sum(1)

    def divergence_from(self, mean: torch.Tensor) -> torch.Tensor:
        """Return the KL divergence (b,) from the law with another mean (b, c, h, w) and the same covariance.

        It is half the squared distance of the means in units of the standard deviation.
        """
        return 0.5 * self.noise(mean).square().flatten(1).sum(1)


def stochastic_mean(x: torch.Tensor, denoised: torch.Tensor, sigma: float, sigma_next: float, *, eta: float) -> torch.Tensor:
    """Return the mean m (b, c, h, w) of the next state."""
    _, a = step_coefficients(sigma, sigma_next, eta)
    return denoised + a * (x - denoised)


def step_std(sigma: float, sigma_next: float, *, eta: float, law: GaussianLaw | None = None) -> float | torch.Tensor:
    """Return the standard deviation of a stochastic step: a number, or (c, h, w) of each mode of the law."""
    c, a = step_coefficients(sigma, sigma_next, eta)
    return c if law is None else (c**2 + (1 - a) ** 2 * law.denoised_variance(sigma)).sqrt()


def step_coefficients(sigma: float, sigma_next: float, eta: float) -> tuple[float, float]:
    """Return (c, a) of a stochastic step: the standard deviation of its noise and the weight of the old error x - D."""
    c = eta * sigma_next * math.sqrt(max(0.0, 1 - (sigma_next / sigma) ** 2))
    return c, math.sqrt(sigma_next**2 - c**2) / sigma
