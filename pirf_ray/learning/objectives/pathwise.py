"""Truncated backpropagation through the last K steps (Yuan et al. 2025, arXiv 2509.20570; DRaFT-K: Clark et al. 2024,
arXiv 2309.17400).

    x_0 = the last K steps of the sampler from the prefix, with every evaluation on the autograd graph
"""

import torch

from envs.denoising import DenoisingProcess
from pirf_ray.diffusion.policy import Policy
from pirf_ray.learning.objectives.base import WITH_GRADIENT, register
from pirf_ray.learning.rollouts.prefixes import Prefix, replay


@register("pathwise")
class Pathwise:
    """Objective with gradient through all evaluations of the last K steps: 2K-1 with Heun, K with Euler."""

    def samples(self, process: DenoisingProcess, policy: Policy, prefix: Prefix, *, seed: int, update: int) -> list[torch.Tensor]:
        """Return one sample of each prefix. Nothing is random."""
        return [replay(process, policy, prefix.x, prefix.step)]

    def cost(self, process: DenoisingProcess, truncation: int) -> float:
        """Return the cost of the evaluations of the last K steps, all with gradient."""
        return WITH_GRADIENT * process.evaluations_from(process.num_steps - truncation)
