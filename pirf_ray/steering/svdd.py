"""SVDD, soft value-based decoding (Li et al. 2024, arXiv 2408.08252): the best of several proposals in each random step.

    x'_1 .. x'_m ~ p(x' | x),   x' = x'_j with a probability proportional to exp(v(x'_j) / alpha)

v is the soft value alpha ln E[exp(r(x_0) / alpha) | x']. The paper's posterior-mean form puts r(D(x'; sigma')) in its place. No
gradient is needed, so any reward serves. With the exact soft value the samples follow p(x_0) exp(r(x_0) / alpha) / Z as m grows.
With r(D) they do not: D at high sigma says little of the samples that follow, and more proposals do not help.
"""

from dataclasses import dataclass

import torch

from envs.common.checks import ConfigError, at_least, not_negative
from envs.common.parts import PartSettings
from envs.denoising import DenoisingProcess
from pirf_ray.metrics.cost import Cost
from pirf_ray.steering.base import PlainSteerer, register
from pirf_ray.steering.context import SteeringContext
from pirf_ray.steering.search import Particles, Search, pick


@dataclass(frozen=True, kw_only=True)
class SVDDSettings(PartSettings):
    """Settings of SVDD."""

    proposals: int = 8
    """m, the number of proposals in each step. Each is a network evaluation and a reward."""
    temperature: float = 0.0
    """alpha, in units of the reward: the strength of the tilt exp(reward / alpha). 0 picks the best proposal."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 1, "proposals")
        not_negative(self, "temperature")


@register("svdd")
class SVDD(PlainSteerer):
    """SVDD (Li et al. 2024, arXiv 2408.08252): several proposals in each random step, picked by the reward of the denoised."""

    Settings = SVDDSettings

    def __init__(self, settings: SVDDSettings, context: SteeringContext) -> None:
        super().__init__(settings, context)
        self.settings = settings
        self.looks = context.soft_value is None
        if context.soft_value is None:
            context.need_reward("svdd")

    def check(self, process: DenoisingProcess) -> None:
        """Raise ConfigError unless the steps are random."""
        if not process.stochastic:
            raise ConfigError(f"--steer svdd picks among random proposals: it needs --solver stochastic, got {process.solver}")

    def propose(self, search: Search, particles: Particles) -> Particles:
        """Return m proposals of the next state of each sample. The step to sigma = 0 is not random and has one."""
        count = self.settings.proposals if search.process.has_density(particles.state.step) else 1
        return search.step(search.look(particles).times(count))  # the copies share the evaluation

    def value(self, search: Search, particles: Particles) -> torch.Tensor:
        """Return the soft value (b m,) of each proposal. A single proposal has the value 0, since there is nothing to pick."""
        if len(particles) == len(search.noise):
            return super().value(search, particles)
        if self.context.soft_value is not None:
            return self.context.soft_value(particles.state.x, particles.state.step)
        assert particles.denoised is not None, "the loop looks, and a step with several proposals ends above sigma = 0"
        return search.in_parts(self.context.rewards, particles.denoised)

    def select(self, search: Search, particles: Particles) -> Particles:
        """Return the picked proposal of each sample."""
        if len(particles) == len(search.noise):
            return particles
        assert particles.values is not None, "the loop sets the values"
        return search.picked(particles, pick(search.by_sample(particles.values), self.settings.temperature, search.uniform()))

    def cost(self, process: DenoisingProcess) -> Cost:
        """Return the evaluations: one at the start and one for each proposal, or N with an exact soft value."""
        if self.context.soft_value is not None:
            return super().cost(process)
        return Cost(network_forwards=1 + self._steps(process) * self.settings.proposals)

    def rewarded(self, process: DenoisingProcess) -> int:
        """Return the number of proposals among which a pick is made."""
        needless = self.context.soft_value is not None or self.settings.proposals == 1
        return 0 if needless else self._steps(process) * self.settings.proposals

    def _steps(self, process: DenoisingProcess) -> int:
        """Return the number of random steps."""
        return sum(process.has_density(step) for step in range(process.num_steps))
