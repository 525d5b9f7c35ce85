"""Layer-wise truncation: only the top decoder levels learn (Yuan et al. 2025, arXiv 2509.20570).

Physics residuals are local, so the decoder blocks of the highest resolutions decide them. The learning tensors are every
``dec.{R}x{R}_*`` of the top n resolutions R, with the output layer. ``freeze`` keeps the exact gradient through the frozen
trunk to the earlier state. ``truncate`` also cuts the gradient at the inputs of the learning blocks. Then only the skip path
c_skip x of D carries a gradient to the earlier state.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from envs.common.checks import ConfigError, require
from envs.common.parts import PartSettings
from pirf_ray.diffusion.denoiser import AbstractDenoiser, Denoiser
from pirf_ray.learning.parameters.base import Group, register

LayerMode = Literal["freeze", "truncate"]


@dataclass(frozen=True, kw_only=True)
class LayerSettings(PartSettings):
    """Settings of the learning layers."""

    levels: int = 0
    """Number of top decoder levels that learn, with the output layer (layer-wise truncation). 0: all layers learn."""
    layer_mode: LayerMode = "freeze"
    """Layers below the learning levels. freeze: the exact gradient passes through them. truncate: it is cut at their outputs."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.levels >= 0, f"--levels must be 0 (all layers) or more, got {self.levels}")


def learning_names(denoiser: AbstractDenoiser, levels: int) -> list[str]:
    """Return the names of the learning parameters: of the top ``levels`` decoder levels, or all if ``levels`` is 0."""
    names = list(denoiser.tensors())
    if levels == 0:
        return names
    if not isinstance(denoiser, Denoiser):
        raise ConfigError(f"--levels {levels}: {type(denoiser).__name__} has no decoder levels; 0 is for all layers")
    available = len(denoiser.config.channel_mult)
    if not 0 <= levels <= available:
        raise ConfigError(f"--levels must be in [0, {available}] (the network's decoder levels; 0 for all layers), got {levels}")
    prefixes = tuple(f"dec.{r}x{r}_" for r in denoiser.config.resolutions[:levels])
    return [name for name in names if name.startswith(prefixes)]


def prepare(denoiser: AbstractDenoiser, levels: int, mode: LayerMode) -> dict[str, torch.nn.Parameter]:
    """Freeze the other parameters, set the cut of the gradient, switch dropout off. Return the learning parameters by name."""
    names = set(learning_names(denoiser, levels))
    denoiser.eval()
    if isinstance(denoiser, Denoiser):
        denoiser.truncate_levels = levels if mode == "truncate" and levels else None
    tensors = denoiser.tensors()
    for name, parameter in tensors.items():
        parameter.requires_grad_(name in names)
    return {name: p for name, p in tensors.items() if name in names}


@register("layers")
class Layers:
    """Whole layers of the network: all, or the top decoder levels."""

    Settings = LayerSettings

    def __init__(self, settings: LayerSettings) -> None:
        self.settings = settings

    def attach(self, denoiser: AbstractDenoiser) -> tuple[AbstractDenoiser, list[Group]]:
        """Return the denoiser itself, and one group of its learning layers."""
        return denoiser, [Group(parameters=prepare(denoiser, self.settings.levels, self.settings.layer_mode))]
