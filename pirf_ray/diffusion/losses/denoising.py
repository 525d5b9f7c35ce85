"""Denoising score matching (Karras et al. 2022, arXiv 2206.00364, equation 2 and table 1)."""

import torch

from pirf_ray.diffusion.denoiser import Denoiser


def denoising_loss(denoiser: Denoiser, y: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the mean of lambda(s) (D(y + s n; s) - y)^2 over samples and elements, lambda = (s^2 + sd^2) / (s sd)^2.

    s is sigma (b,), sd is sigma_data, n is ``noise``. y and n: (b, c, h, w), model units.
    """
    s = sigma[:, None, None, None]
    weight = (s**2 + denoiser.sigma_data**2) / (s * denoiser.sigma_data) ** 2
    error: torch.Tensor = denoiser(y + s * noise, sigma) - y
    return (weight * error.square()).mean()
