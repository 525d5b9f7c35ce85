"""The seam of the pretraining losses. A loss is made with (settings).

>>> import torch
>>> class Huber:
...     "Huber loss of the denoised field."
...     def __call__(self, denoiser, y, sigma, noise):
...         denoised = denoiser(y + sigma[:, None, None, None] * noise, sigma)
...         return torch.nn.functional.huber_loss(denoised, y)
"""

from typing import Protocol

import torch

from envs.common.parts import PartRegistry
from pirf_ray.diffusion.denoiser import AbstractDenoiser


class PretrainingLoss(Protocol):
    """Loss of a denoiser on fields with noise."""

    def __call__(self, denoiser: AbstractDenoiser, y: torch.Tensor, sigma: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return the scalar loss of fields y (b, c, h, w), model units, with sigma (b,) times the noise (b, c, h, w)."""
        ...


LOSSES: PartRegistry[PretrainingLoss] = PartRegistry("loss", PretrainingLoss)
"""Pretraining losses by name."""
register = LOSSES.register
