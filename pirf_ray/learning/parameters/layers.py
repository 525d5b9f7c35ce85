"""Layer-wise truncation: only the top decoder levels learn (Yuan et al. 2025, arXiv 2509.20570).

Physics residuals are local, so the decoder blocks of the highest resolutions decide them. The learning tensors are every
``dec.{R}x{R}_*`` of the top n resolutions R, with the output layer. ``freeze`` keeps the exact gradient through the frozen
trunk to the earlier state. ``truncate`` also cuts the gradient at the inputs of the learning blocks. Then only the skip path
c_skip x of D carries a gradient to the earlier state.
"""

from typing import Literal

import torch

from pirf_ray.diffusion.denoiser import Denoiser

LayerMode = Literal["freeze", "truncate"]


def learning_names(denoiser: Denoiser, levels: int) -> list[str]:
    """Return the names of the learning parameters: of the top ``levels`` decoder levels, or all if ``levels`` is 0."""
    names = [name for name, _ in denoiser.network.named_parameters()]
    available = len(denoiser.config.channel_mult)
    if not 0 <= levels <= available:
        raise ValueError(f"--levels must be in [0, {available}] (the network's decoder levels; 0 for all layers), got {levels}")
    if levels == 0:
        return names
    prefixes = tuple(f"dec.{r}x{r}_" for r in denoiser.config.resolutions[:levels])
    return [name for name in names if name.startswith(prefixes)]


def prepare(denoiser: Denoiser, levels: int, mode: LayerMode) -> dict[str, torch.nn.Parameter]:
    """Freeze the other parameters, set the cut of the gradient, switch dropout off. Return the learning parameters by name."""
    names = set(learning_names(denoiser, levels))
    denoiser.eval()
    denoiser.truncate_levels = levels if mode == "truncate" and levels else None
    for name, parameter in denoiser.network.named_parameters():
        parameter.requires_grad_(name in names)
    return {name: p for name, p in denoiser.network.named_parameters() if name in names}
