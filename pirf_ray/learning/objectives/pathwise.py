"""Truncated backpropagation through the last K steps (Yuan et al. 2025, arXiv 2509.20570; DRaFT-K: Clark et al. 2024,
arXiv 2309.17400).

    loss = -r(x_0) + beta sum_i KL(p_i | p_i^base),  x_0 = the last K steps of the sampler from the prefix, on the autograd graph

The second term needs stochastic steps. With K = N it is the KL-regularized objective whose optimum is the tilt's chain.
"""

from dataclasses import dataclass, replace

from envs.common.checks import not_negative
from envs.common.parts import PartSettings
from envs.rewards.base import Reward
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.losses import Batch, Loss
from pirf_ray.learning.objectives.base import Objective, register
from pirf_ray.learning.objectives.replaying import replay_cost, replay_from
from pirf_ray.learning.objectives.rewarded import prefix_of, reward_loss
from pirf_ray.metrics.cost import Cost


@dataclass(frozen=True, kw_only=True)
class PathwiseSettings(PartSettings):
    """Settings of the pathwise objective."""

    path_kl: float = 0.0
    """beta of the KL divergence of the chain to the reference's, for --solver stochastic. 0: no such term."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "path_kl")


@register("pathwise")
class Pathwise(Objective):
    """Reward gradient through all evaluations of the last K steps (PIRF, DRaFT-K)."""

    Settings = PathwiseSettings
    makers = ("prefixes",)
    needs_gradient = True

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        """Return minus the reward of the replayed samples, and the path's KL."""
        beta = self.settings.path_kl
        replay = replay_from(self.context, policies, batch, prefix_of(batch).state, with_kl=beta > 0)
        loss = replace(reward_loss(self.context, batch, reward, [replay.x]), kl=replay.kl)
        if not beta:
            return loss
        return loss.plus(Loss(value=beta * replay.kl.mean(), metrics={"path_kl": replay.kl.detach()}))

    def cost(self, batch: Batch) -> Cost:
        """Return the evaluations of the last K steps, with the reference's for the KL."""
        return replay_cost(self.context, prefix_of(batch).step, len(batch), with_kl=self.settings.path_kl > 0)
