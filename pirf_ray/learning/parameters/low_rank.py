"""Low-rank adaptation (LoRA, Hu et al. 2021, arXiv 2106.09685).

    W = W_0 + B A,  A (r, n), B (m, r), W a weight of the network flattened to (m, n) = (out, in * kernel)

A starts random with variance 1/n and B at zero, so W starts at W_0. Only the factors learn, so only they are published and
saved. One-dimensional tensors (biases, norms) do not change.
"""

from dataclasses import dataclass

import torch
from torch.nn.utils import parametrize

from envs.common.checks import at_least
from envs.numerics import seeding
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.learning.parameters.base import Group, register
from pirf_ray.learning.parameters.layers import LayerSettings, prepare


@dataclass(frozen=True, kw_only=True)
class LowRankSettings(LayerSettings):
    """Settings of low-rank factors, in the learning layers."""

    lora_rank: int = 4
    """Rank of the changes of the weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "lora_rank")


class Factors(torch.nn.Module):
    """Change of a weight by factors B and A. The weight keeps its shape."""

    def __init__(self, weight: torch.Tensor, rank: int, index: int) -> None:
        super().__init__()
        m, n = weight.shape[0], weight[0].numel()
        r = min(rank, m, n)
        drawn = seeding.normal(0, "low rank", [index], (r, n))[0] / n**0.5
        self.down = torch.nn.Parameter(drawn.to(weight))
        self.up = torch.nn.Parameter(torch.zeros(m, r, dtype=weight.dtype, device=weight.device))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """Return W_0 + B A in the shape and the memory layout of the weight W_0. A convolution's rounding depends on the layout."""
        whole = torch.empty_like(weight).copy_(weight)
        return whole.add_((self.up @ self.down).reshape(weight.shape))


@register("low-rank")
class LowRank:
    """Low-rank factors of the weights in the learning layers (LoRA)."""

    Settings = LowRankSettings

    def __init__(self, settings: LowRankSettings) -> None:
        self.settings = settings

    def attach(self, denoiser: AbstractDenoiser) -> tuple[AbstractDenoiser, list[Group]]:
        """Return the denoiser with factors in its weights, and the group of the factors."""
        layers = prepare(denoiser, self.settings.levels, self.settings.layer_mode)
        denoiser.requires_grad_(False)
        own = {id(p): name for name, p in layers.items()}
        places = [
            (m, short) for m in list(denoiser.modules()) for short, p in list(m.named_parameters(recurse=False)) if id(p) in own
        ]
        index = 0
        for module, short in places:
            weight = getattr(module, short)
            if weight.ndim < 2:
                continue
            parametrize.register_parametrization(module, short, Factors(weight.detach(), self.settings.lora_rank, index))
            index += 1
        factors = {name: p for name, p in denoiser.tensors().items() if name.endswith((".up", ".down"))}
        for factor in factors.values():
            factor.requires_grad_(True)
        return denoiser, [Group(parameters=factors)]
