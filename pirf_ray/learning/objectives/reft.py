"""ReFT, reward feedback on a one-step prediction (ReFL: Xu et al. 2023, arXiv 2304.05977): no trajectory is differentiated.

    k ~ uniform {1, ..., K} per update,  x_0 = D(x_{N-k}; sigma_{N-k}), with x_{N-k} made without gradient

It is cheap and biased: it rewards the denoiser's mean at sigma_{N-k} instead of a finished sample.
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
    """Objective with one evaluation with gradient, at a random sigma of the last K steps."""

    def samples(self, process: DenoisingProcess, policy: Policy, prefix: Prefix, *, seed: int, update: int) -> list[torch.Tensor]:
        """Return one prediction of each prefix. ``seed`` and ``update`` decide k."""
        latest = process.num_steps - 1
        step = int(seeding.generator(seed, "reft", update).integers(prefix.step, latest + 1))
        denoiser_from = policy.denoisers(process)
        with torch.no_grad():
            x = advance(process, denoiser_from, State(x=prefix.x, step=prefix.step), step).x
        sigma = process.sigmas[step]
        return [denoiser_from(sigma)(x, sigma)]

    def cost(self, process: DenoisingProcess, truncation: int) -> float:
        """Return the mean cost over k."""
        whole = process.evaluations_from(process.num_steps - truncation)
        forwards = [whole - process.evaluations_from(process.num_steps - k) for k in range(1, truncation + 1)]
        return FORWARD * sum(forwards) / len(forwards) + WITH_GRADIENT
