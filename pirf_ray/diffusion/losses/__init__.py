"""The losses of pretraining by name."""

from pirf_ray.diffusion.losses import denoising  # noqa: F401  (registers itself)
from pirf_ray.diffusion.losses.base import LOSSES, PretrainingLoss, register
from pirf_ray.diffusion.losses.denoising import denoising_loss

__all__ = ["LOSSES", "PretrainingLoss", "denoising_loss", "register"]
