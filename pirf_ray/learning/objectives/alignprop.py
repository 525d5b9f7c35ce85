"""AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739): random truncation with gradient checkpointing.

    k ~ uniform {1, ..., K} per update,  x_0 = the last k steps with gradient after K - k steps without gradient

A checkpointed evaluation keeps only its input and is computed again in the backward pass. The paper learns low-rank factors
(``--lora-rank``).
"""

import torch
from torch.utils.checkpoint import checkpoint

from envs.denoising import DenoisingProcess, State
from envs.numerics import seeding
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import Denoise, advance, finish
from pirf_ray.learning.objectives.base import FORWARD, WITH_GRADIENT, register
from pirf_ray.learning.rollouts.prefixes import Prefix


@register("alignprop")
class AlignProp:
    """Objective that backpropagates through the last k steps, k random and at most the truncation K."""

    def samples(self, process: DenoisingProcess, policy: Policy, prefix: Prefix, *, seed: int, update: int) -> list[torch.Tensor]:
        """Return one sample of each prefix. ``seed`` and ``update`` decide k."""
        longest = process.num_steps - prefix.step
        steps = int(seeding.generator(seed, "alignprop", update).integers(1, longest + 1))
        denoiser_from = policy.denoisers(process)
        with torch.no_grad():
            start = advance(process, denoiser_from, State(x=prefix.x, step=prefix.step), process.num_steps - steps)
        return [finish(process, lambda sigma: _recomputed(denoiser_from(sigma)), start)]

    def cost(self, process: DenoisingProcess, truncation: int) -> float:
        """Return the mean cost over k. A checkpointed evaluation costs one more forward."""
        whole = process.evaluations_from(process.num_steps - truncation)
        with_gradient = [process.evaluations_from(process.num_steps - k) for k in range(1, truncation + 1)]
        costs = [FORWARD * (whole - g) + (WITH_GRADIENT + FORWARD) * g for g in with_gradient]
        return sum(costs) / len(costs)


def _recomputed(denoiser: Denoise) -> Denoise:
    """Return the denoiser with activations that are not kept but computed again in the backward pass."""
    return lambda x, sigma: checkpoint(denoiser, x, sigma, use_reentrant=False)
