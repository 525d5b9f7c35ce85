"""ReFT, reward feedback on a one-step prediction (ReFL: Xu et al. 2023, arXiv 2304.05977): no trajectory is differentiated.

    k ~ uniform {1, ..., K} per update,  x_0 = D(x_{N-k}; sigma_{N-k}), with x_{N-k} made without gradient

It is cheap and biased: it rewards the denoiser's mean at sigma_{N-k} instead of a finished sample.
"""

import torch

from envs.numerics import seeding
from envs.rewards.base import Reward
from pirf_ray.diffusion.policies import Policies
from pirf_ray.diffusion.sampling import advance
from pirf_ray.learning.losses import Batch, Loss
from pirf_ray.learning.objectives.base import Objective, register
from pirf_ray.learning.objectives.rewarded import prefix_of, reward_loss
from pirf_ray.metrics.cost import Cost


@register("reft")
class ReFT(Objective):
    """Reward gradient of a one-step prediction from a random late step (ReFL)."""

    makers = ("prefixes",)
    needs_gradient = True
    deterministic = True

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        """Return minus the reward of one prediction per prefix. The key decides k."""
        process, prefix, step = self.context.process, prefix_of(batch), self._step(batch)
        denoiser_from = policies.tuned.denoisers(process, prefix.condition)
        with torch.no_grad():
            x = advance(process, denoiser_from, prefix.state, step).x
        sigma = process.sigmas[step]
        return reward_loss(self.context, batch, reward, [denoiser_from(sigma)(x, sigma)])

    def _step(self, batch: Batch) -> int:
        """Return the step N - k of the update."""
        steps = prefix_of(batch).step, self.context.process.num_steps
        return int(seeding.generator(batch.key[0], "reft", batch.key[1]).integers(*steps))

    def cost(self, batch: Batch) -> Cost:
        """Return the evaluations of the batch's k."""
        process, first = self.context.process, prefix_of(batch).step
        before = process.evaluations_from(first) - process.evaluations_from(self._step(batch))
        return Cost(network_forwards=(before + 1) * len(batch), network_gradients=len(batch))
