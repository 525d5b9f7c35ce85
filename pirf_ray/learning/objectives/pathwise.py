"""Truncated backpropagation through the last K steps (Yuan et al. 2025, arXiv 2509.20570; DRaFT-K: Clark et al. 2024,
arXiv 2309.17400).

    x_0 = the last K steps of the sampler from the prefix, every evaluation of theirs on the autograd graph
"""

import torch

from envs.denoising import DenoisingProcess
from pirf_ray.diffusion.policy import Policy
from pirf_ray.learning.objectives.base import WITH_GRADIENT, register
from pirf_ray.learning.rollouts.prefixes import Prefix, replay


@register("pathwise")
class Pathwise:
    """2K-1 evaluations with gradient (Heun), K (Euler)."""

    def samples(self, process: DenoisingProcess, policy: Policy, prefix: Prefix, *, seed: int, update: int) -> list[torch.Tensor]:
        return [replay(process, policy, prefix.x, prefix.step)]

    def cost(self, process: DenoisingProcess, truncation: int) -> float:
        return WITH_GRADIENT * process.evaluations_from(process.num_steps - truncation)
