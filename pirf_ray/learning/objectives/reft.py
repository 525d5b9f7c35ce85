"""ReFT, reward feedback on a one-step prediction (ReFL: Xu et al. 2023, arXiv 2304.05977): no trajectory is differentiated.

    k ~ uniform {1, ..., K} each update; x_0 = D(x_{N-k}; sigma_{N-k}), the state reached without gradient

Cheap, and biased: what is rewarded is the denoiser's mean at sigma_{N-k}, not a finished sample.
"""

import torch

from envs.denoising import DenoisingProcess, State
from envs.numerics import seeding
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import advance
from pirf_ray.learning.objectives.base import FORWARD, WITH_GRADIENT, register
from pirf_ray.learning.rollouts.prefixes import Prefix


@register("reft")
class ReFT:
    """One evaluation with gradient, at one of the last K sigmas."""

    def samples(self, process: DenoisingProcess, policy: Policy, prefix: Prefix, *, seed: int, update: int) -> list[torch.Tensor]:
        latest = process.num_steps - 1
        step = int(seeding.generator(seed, "reft", update).integers(prefix.step, latest + 1))
        denoiser_from = policy.denoisers(process)
        with torch.no_grad():
            x = advance(process, denoiser_from, State(x=prefix.x, step=prefix.step), step).x
        sigma = process.sigmas[step]
        return [denoiser_from(sigma)(x, sigma)]

    def cost(self, process: DenoisingProcess, truncation: int) -> float:
        whole = process.evaluations_from(process.num_steps - truncation)
        forwards = [whole - process.evaluations_from(process.num_steps - k) for k in range(1, truncation + 1)]
        return FORWARD * sum(forwards) / len(forwards) + WITH_GRADIENT
