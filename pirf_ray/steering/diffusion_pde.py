"""DiffusionPDE (Huang et al. 2024, arXiv 2406.17763): guidance by the gradient of the residual's norm, through the network.

    x_{i+1} <- x_{i+1} - zeta grad_{x_i} rho(D(x_i; sigma_i)),  rho the root mean square residual of one sample

in the last fifth of the steps. The norm is each sample's own: a norm over the batch would weigh a sample by its neighbours.
The paper's zeta is a constant in the residual's units. Here zeta = guidance rho / ||grad rho||^2, so that one number serves
every PDE: guidance 1 ends the norm where it is linear. With a reward in place of a residual, rho is sqrt(-reward).
"""

import math
from dataclasses import dataclass, replace

import torch

from envs.common.checks import not_negative
from envs.common.parts import PartSettings
from envs.denoising import DenoisingProcess
from pirf_ray.metrics.cost import Cost
from pirf_ray.steering.base import PlainSteerer, register
from pirf_ray.steering.context import SteeringContext
from pirf_ray.steering.residuals import polyak, wide
from pirf_ray.steering.search import Particles, Search

GUIDED_PART = 0.2
"""Part of the steps, the last ones, that is guided."""


def first_guided(num_steps: int) -> int:
    """Return the first step of the guided part; at least the last step is guided."""
    return num_steps - max(1, math.ceil(GUIDED_PART * num_steps))


@dataclass(frozen=True, kw_only=True)
class DiffusionPDESettings(PartSettings):
    """Settings of DiffusionPDE."""

    guidance: float = 0.1
    """Size of the guidance. 1 ends the norm of the residual where it is linear."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "guidance")


@register("diffusion-pde")
class DiffusionPDE(PlainSteerer):
    """DiffusionPDE (Huang et al. 2024, arXiv 2406.17763): guidance of the last steps by the gradient through the network.

    The evaluation that a step begins with anyway is differentiated. So there are no more evaluations than without guidance.
    """

    Settings = DiffusionPDESettings

    def __init__(self, settings: DiffusionPDESettings, context: SteeringContext) -> None:
        super().__init__(settings, context)
        context.need_gradient("diffusion-pde")
        self.guidance = settings.guidance

    def propose(self, search: Search, particles: Particles) -> Particles:
        """Return the particles one whole step later, in the guided part moved down the gradient of the norm."""
        state, process = particles.state, search.process
        if state.step < first_guided(process.num_steps):
            return search.step(particles)
        with torch.enable_grad():
            x = state.x.detach().requires_grad_(True)
            denoised = search.denoise(x, process.sigmas[state.step], state.step)
            violation = self.context.violation(denoised, search.condition(len(x)))
            norm = violation.clamp_min(torch.finfo(x.dtype).tiny).sqrt()
            (gradient,) = torch.autograd.grad(norm.sum(), x)
        moved = search.step(replace(particles, denoised=denoised.detach()))
        return moved.moved(moved.state.x - wide(polyak(self.guidance * norm.detach(), gradient)) * gradient)

    def cost(self, process: DenoisingProcess) -> Cost:
        """Return the evaluations of the process, and a gradient for each guided step."""
        guided = process.num_steps - first_guided(process.num_steps)
        return Cost(network_forwards=process.num_evaluations, network_gradients=guided, residual_gradients=guided)
