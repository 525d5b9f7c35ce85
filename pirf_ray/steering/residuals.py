"""Residuals and values as functions of samples in model units, and steps down a residual."""

from collections.abc import Callable

import torch

Residual = Callable[[torch.Tensor], torch.Tensor]
"""x (b, c, h, w), model units -> mean square residual (b,)."""
SoftValue = Callable[[torch.Tensor, int], torch.Tensor]
"""(x (b, c, h, w), model units, at the start of a step; the step) -> alpha ln E[exp(reward / alpha)] (b,) over the samples from x."""


def residual_gradient(residual: Residual, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (d residual / dx (b, c, h, w), residual (b,)), each sample's own, without a graph."""
    with torch.enable_grad():
        x = x.detach().requires_grad_(True)
        value = residual(x)
        (gradient,) = torch.autograd.grad(value.sum(), x)
    return gradient, value.detach()


def polyak(value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Return Polyak's step value / ||gradient||^2 (b,), each sample's own; 0 where the gradient (b, c, h, w) is 0."""
    square = gradient.flatten(1).square().sum(1)
    size = value / square.clamp_min(torch.finfo(square.dtype).tiny)
    return torch.where(square == 0, torch.zeros_like(size), size)


def wide(values: torch.Tensor) -> torch.Tensor:
    """Return numbers (b,) as (b, 1, 1, 1), so that each multiplies its own sample."""
    return values[:, None, None, None]
