"""CoCoGen (Jacobsen et al. 2024, arXiv 2312.10527): corrections of x by the residual's gradient, none through the network.

    x <- x - step r / ||g||^2 g,  g = dr/dx, r the mean square residual of one sample

once after each of the last fifth of the steps and ``after`` times at the end. The paper scales its constant by the largest
gradient; Polyak's r / ||g||^2 (1969) makes the size dimensionless. A sample under the data floor is left alone.
"""

from dataclasses import dataclass

import torch

from envs.common.checks import not_negative, require_each
from envs.common.parts import PartSettings
from envs.denoising import DenoisingProcess
from envs.numerics.conditions import Condition
from pirf_ray.metrics.cost import Cost
from pirf_ray.steering.base import PlainSteerer, register
from pirf_ray.steering.context import SteeringContext
from pirf_ray.steering.diffusion_pde import first_guided
from pirf_ray.steering.residuals import polyak, residual_gradient, wide
from pirf_ray.steering.search import Particles, Search


@dataclass(frozen=True, kw_only=True)
class CoCoGenSettings(PartSettings):
    """Settings of CoCoGen."""

    step: float = 0.25
    """Size of a correction. 1 is Polyak's step."""
    after: int = 10
    """Number of corrections after the last step."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_each(self, ("step",), "be in (0, 1]", lambda value: 0 < value <= 1)
        not_negative(self, "after")


@register("cocogen")
class CoCoGen(PlainSteerer):
    """CoCoGen (Jacobsen et al. 2024, arXiv 2312.10527): corrections during the last steps and after them, of all channels."""

    Settings = CoCoGenSettings

    def __init__(self, settings: CoCoGenSettings, context: SteeringContext) -> None:
        super().__init__(settings, context)
        context.need_gradient("cocogen")
        self.settings = settings

    def propose(self, search: Search, particles: Particles) -> Particles:
        """Return the particles one whole step later, in the last fifth of the steps corrected."""
        moved = search.step(particles)
        if particles.state.step < first_guided(search.process.num_steps):
            return moved
        times = 1 + (self.settings.after if search.process.terminal(moved.state) else 0)
        return moved.moved(self.correct(moved.state.x, times, search.condition(len(moved))))

    def correct(self, x: torch.Tensor, times: int, condition: Condition | None = None) -> torch.Tensor:
        """Return x (b, c, h, w) after so many corrections."""
        for _ in range(times):
            gradient, r = residual_gradient(lambda field: self.context.violation(field, condition), x)
            size = torch.where(r > self.context.floor, polyak(self.settings.step * r, gradient), torch.zeros_like(r))
            x = x - wide(size) * gradient
        return x

    def cost(self, process: DenoisingProcess) -> Cost:
        """Return the evaluations of the process, and a residual gradient for each correction."""
        corrections = process.num_steps - first_guided(process.num_steps) + self.settings.after
        return Cost(network_forwards=process.num_evaluations, residual_gradients=corrections)
