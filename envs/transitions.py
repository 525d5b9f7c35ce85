"""Pure, differentiable sampler steps of the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma.

Source: Karras et al. 2022 (arXiv 2206.00364), algorithm 1 without churn. The caller decides on ``no_grad``.
"""

import torch


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
