"""AlignProp (Prabhudesai et al. 2023, arXiv 2310.03739): random truncation with gradient checkpointing.

    k ~ uniform {1, ..., K} per update,  x_0 = the last k steps with gradient after K - k steps without gradient

A checkpointed evaluation keeps only its input and is computed again in the backward pass. The paper learns low-rank factors
(``--parameters low-rank``).
"""

import torch
from torch.utils.checkpoint import checkpoint

from envs.denoising import Denoise
from envs.numerics import seeding
from envs.rewards.base import Reward
from pirf_ray.diffusion.policies import Policies
from pirf_ray.diffusion.sampling import advance, finish
from pirf_ray.learning.losses import Batch, Loss
from pirf_ray.learning.objectives.base import Objective, register
from pirf_ray.learning.objectives.rewarded import prefix_of, reward_loss
from pirf_ray.metrics.cost import Cost


@register("alignprop")
class AlignProp(Objective):
    """Reward gradient through a random number of last steps, at most K, with checkpointing."""

    makers = ("prefixes",)
    needs_gradient = True
    deterministic = True

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        """Return minus the reward of the samples. The key decides k."""
        process, prefix = self.context.process, prefix_of(batch)
        denoiser_from = policies.tuned.denoisers(process, prefix.condition)
        with torch.no_grad():
            start = advance(process, denoiser_from, prefix.state, process.num_steps - self._steps(batch))
        x = finish(process, lambda sigma: _recomputed(denoiser_from(sigma)), start)
        return reward_loss(self.context, batch, reward, [x])

    def _steps(self, batch: Batch) -> int:
        """Return k of the update."""
        longest = self.context.process.num_steps - prefix_of(batch).step
        return int(seeding.generator(batch.key[0], "alignprop", batch.key[1]).integers(1, longest + 1))

    def cost(self, batch: Batch) -> Cost:
        """Return the evaluations of the batch's k. A checkpointed evaluation costs one more forward."""
        process = self.context.process
        whole = process.evaluations_from(prefix_of(batch).step)
        graded = process.evaluations_from(process.num_steps - self._steps(batch))
        return Cost(network_forwards=(whole + graded) * len(batch), network_gradients=graded * len(batch))


def _recomputed(denoiser: Denoise) -> Denoise:
    """Return the denoiser with activations that are not kept but computed again in the backward pass."""
    return lambda x, sigma: checkpoint(denoiser, x, sigma, use_reentrant=False)
