"""Best of n: n independent samples, and the reward decides. It is what every search must beat at equal cost."""

from dataclasses import dataclass

import torch

from envs.common.checks import at_least
from envs.common.parts import PartSettings
from envs.denoising import DenoisingProcess
from pirf_ray.metrics.cost import Cost
from pirf_ray.steering.base import PlainSteerer, register
from pirf_ray.steering.context import SteeringContext
from pirf_ray.steering.search import Particles, Search


@dataclass(frozen=True, kw_only=True)
class BestOfNSettings(PartSettings):
    """Settings of best-of-n."""

    candidates: int = 8
    """n, the number of samples of which one is kept. Each costs the evaluations of a sample and a reward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "candidates")


@register("best-of-n")
class BestOfN(PlainSteerer):
    """The best of n independent samples, by the reward of the finished field."""

    Settings = BestOfNSettings

    def __init__(self, settings: BestOfNSettings, context: SteeringContext) -> None:
        super().__init__(settings, context)
        context.need_reward("best-of-n")
        self.rounds = settings.candidates

    def start(self, search: Search, round: int) -> Particles:
        """Return one particle per sample: at the start noise in the first round, at noise of its own in each later round."""
        return search.first() if round == 0 else search.first(search.normal())

    def value(self, search: Search, particles: Particles) -> torch.Tensor:
        """Return the rewards (b,) of finished samples, and 0 before."""
        if not search.process.terminal(particles.state):
            return super().value(search, particles)
        return search.in_parts(self.context.rewards, particles.state.x)

    def cost(self, process: DenoisingProcess) -> Cost:
        """Return n times the evaluations of a sample."""
        return Cost(network_forwards=self.rounds * process.num_evaluations)

    def rewarded(self, process: DenoisingProcess) -> int:
        """Return n."""
        return self.rounds
