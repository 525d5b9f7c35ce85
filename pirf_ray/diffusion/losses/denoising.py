"""Denoising score matching (Karras et al. 2022, arXiv 2206.00364, equation 2 and table 1)."""

import torch

from envs.common.parts import PartSettings
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.diffusion.losses.base import register


def denoising_loss(denoiser: AbstractDenoiser, y: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the mean of lambda(s) (D(y + s n; s) - y)^2 over samples and elements, lambda = (s^2 + sd^2) / (s sd)^2.

    s is sigma (b,), sd is sigma_data, n is ``noise``. y and n: (b, c, h, w), model units.
    """
    s = sigma[:, None, None, None]
    weight = (s**2 + denoiser.sigma_data**2) / (s * denoiser.sigma_data) ** 2
    error: torch.Tensor = denoiser(y + s * noise, sigma) - y
    return (weight * error.square()).mean()


@register("denoising")
class DenoisingLoss:
    """Denoising score matching with EDM's weights."""

    def __init__(self, settings: PartSettings) -> None:
        pass

    def __call__(self, denoiser: AbstractDenoiser, y: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the loss of ``denoising_loss``."""
        return denoising_loss(denoiser, y, sigma, noise)
