"""Layer-wise truncation: which tensors learn (Yuan et al. 2025, arXiv 2509.20570).

Physics residuals are local, so the highest-resolution decoder blocks decide them: every ``dec.{R}x{R}_*`` of the top n
resolutions R, the output layer included. ``freeze`` keeps the exact gradient through the frozen trunk to the earlier
state; ``truncate`` also cuts the gradient at the inputs of the learning blocks, leaving D's own skip path c_skip x.
"""

from typing import Literal

import torch

from pirf_ray.diffusion.denoiser import Denoiser

LayerMode = Literal["freeze", "truncate"]


def learning_names(denoiser: Denoiser, levels: int) -> list[str]:
    """Names of the network's learning parameters: all for levels = 0, else those of the top ``levels`` decoder levels."""
    names = [name for name, _ in denoiser.network.named_parameters()]
    available = len(denoiser.config.channel_mult)
    if not 0 <= levels <= available:
        raise ValueError(f"--levels must be in [0, {available}] (the network's decoder levels; 0 for all layers), got {levels}")
    if levels == 0:
        return names
    prefixes = tuple(f"dec.{r}x{r}_" for r in denoiser.config.resolutions[:levels])
    return [name for name in names if name.startswith(prefixes)]


def prepare(denoiser: Denoiser, levels: int, mode: LayerMode) -> dict[str, torch.nn.Parameter]:
    """Set what learns and where the gradient is cut; returns the learning parameters by name. Dropout is off."""
    names = set(learning_names(denoiser, levels))
    denoiser.eval()
    denoiser.truncate_levels = levels if mode == "truncate" and levels else None
    for name, parameter in denoiser.network.named_parameters():
        parameter.requires_grad_(name in names)
    return {name: p for name, p in denoiser.network.named_parameters() if name in names}
