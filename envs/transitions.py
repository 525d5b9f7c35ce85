"""Pure, differentiable sampler steps of the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma.

Karras et al. 2022 (arXiv 2206.00364), algorithm 1 without churn. The caller owns ``no_grad``.
"""

import torch


def slope(x: torch.Tensor, denoised: torch.Tensor, sigma: float) -> torch.Tensor:
    """dx/dsigma at (x, sigma) from the denoised prediction. Shapes (b, c, h, w)."""
    return (x - denoised) / sigma


def euler_step(x: torch.Tensor, slope_here: torch.Tensor, sigma: float, sigma_next: float) -> torch.Tensor:
    """First order: x + (sigma_next - sigma) slope."""
    return x + (sigma_next - sigma) * slope_here


def heun_step(
    x: torch.Tensor, slope_here: torch.Tensor, slope_next: torch.Tensor, sigma: float, sigma_next: float
) -> torch.Tensor:
    """Second order: the mean of the slopes at both ends of the step."""
    return x + (sigma_next - sigma) * 0.5 * (slope_here + slope_next)
