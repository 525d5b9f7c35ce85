"""DRaFT-LV (Clark et al. 2024, arXiv 2309.17400): gradients of the last evaluation only, several per prefix.

    x_0^1 = D(x_{N-1}; sigma_{N-1}),  x_0^i = D(x_0^1 + sigma_{N-1} e_i; sigma_{N-1}), e_i ~ N(0, 1), i = 2..n

The re-noised samples have the law of the last state. So one prefix gives n gradients for one evaluation each, which lowers
the variance.
"""

import torch

from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from pirf_ray.diffusion.policy import Policy
from pirf_ray.learning.objectives.base import WITH_GRADIENT, register
from pirf_ray.learning.rollouts.prefixes import Prefix, replay

REPEATS = 2
"""n, the number of samples per prefix, as in the paper's experiments."""


@register("draft-lv")
class DraftLV:
    """Objective with n evaluations with gradient, all at the last sigma. It needs the truncation K = 1."""

    def samples(self, process: DenoisingProcess, policy: Policy, prefix: Prefix, *, seed: int, update: int) -> list[torch.Tensor]:
        """Return n samples of each prefix. ``seed``, ``update`` and the sample ids decide the noise. ValueError unless K = 1."""
        last = process.num_steps - 1
        if prefix.step != last:
            raise ValueError(
                f"draft-lv differentiates the last step only: truncation must be 1, got {process.num_steps - prefix.step}"
            )
        sigma = process.sigmas[last]
        first = replay(process, policy, prefix.x, last)
        made = [first]
        for repeat in range(1, REPEATS):
            noise = seeding.normal(seed, f"draft-lv {update} {repeat}", prefix.sample_ids, tuple(first.shape[1:]))
            made.append(replay(process, policy, first.detach() + sigma * noise.to(first), last))
        return made

    def cost(self, process: DenoisingProcess, truncation: int) -> float:
        """Return the cost of n evaluations with gradient."""
        return WITH_GRADIENT * REPEATS
