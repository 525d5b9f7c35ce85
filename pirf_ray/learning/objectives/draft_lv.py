"""DRaFT-LV (Clark et al. 2024, arXiv 2309.17400): gradients of the last evaluation only, several per prefix.

    x_0^1 = D(x_{N-1}; sigma_{N-1}),  x_0^i = D(x_0^1 + sigma_{N-1} e_i; sigma_{N-1}), e_i ~ N(0, 1), i = 2..n

The re-noised samples have the law of the last state. So one prefix gives n gradients for one evaluation each, which lowers
the variance.
"""

from envs.common.checks import require
from envs.common.parts import PartSettings
from envs.numerics import seeding
from envs.rewards.base import Reward
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.losses import Batch, Context, Loss
from pirf_ray.learning.objectives.base import Objective, register
from pirf_ray.learning.objectives.rewarded import prefix_of, reward_loss
from pirf_ray.learning.rollouts.prefixes import replay
from pirf_ray.metrics.cost import Cost

REPEATS = 2
"""n, the number of samples per prefix, as in the paper's experiments."""


@register("draft-lv")
class DraftLV(Objective):
    """Reward gradient of the last evaluation alone, from several noises. It needs K = 1."""

    makers = ("prefixes",)
    needs_gradient = True

    def __init__(self, settings: PartSettings, context: Context) -> None:
        """Take the context. ConfigError unless K = 1."""
        super().__init__(settings, context)
        require(
            context.truncation == 1,
            f"--objective draft-lv differentiates the last step only: --truncation must be 1, got {context.truncation}",
        )

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        """Return minus the reward of n samples per prefix. The key and the sample ids decide the noise."""
        process, prefix = self.context.process, prefix_of(batch)
        sigma = process.sigmas[prefix.step]
        denoiser = policies.tuned.denoisers(process, prefix.condition)(sigma)
        first = replay(process, policies.tuned, prefix)
        made = [first]
        for repeat in range(1, REPEATS):
            noise = seeding.normal(batch.key[0], f"draft-lv {batch.key[1]} {repeat}", prefix.sample_ids, tuple(first.shape[1:]))
            made.append(denoiser(first.detach() + sigma * noise.to(first), sigma))
        return reward_loss(self.context, batch, reward, made)

    def cost(self, batch: Batch) -> Cost:
        """Return the n evaluations, all with gradient."""
        return Cost(network_forwards=REPEATS * len(batch), network_gradients=REPEATS * len(batch))
