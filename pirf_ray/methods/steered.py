"""Methods that steer while sampling; nothing is learned."""

from collections.abc import Mapping

from envs.common.search import Range, Spec
from pirf_ray.diffusion.sampling import Sampler
from pirf_ray.methods.base import Method, Problem, Settings, Weights, register
from pirf_ray.steering.cocogen import CorrectedSampler
from pirf_ray.steering.correction import residual_floor
from pirf_ray.steering.diffusion_pde import GuidedSampler

MOST_CORRECTIONS = 20
"""Largest number of corrections after the last step that is searched."""


@register
class DiffusionPDE(Method):
    """Guidance by the gradient of the residual's norm, through the network."""

    name = "diffusion-pde"
    title = "DiffusionPDE"
    source = "Huang et al. 2024, arXiv 2406.17763"

    def defaults(self, problem: Problem) -> Settings:
        return {"guidance": 0.1}

    def search(self, problem: Problem) -> Mapping[str, Spec]:
        return {"guidance": Range(0.01, 1.0)}

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        return GuidedSampler(problem.base, problem.residual, guidance=settings["guidance"])


@register
class CoCoGen(Method):
    """Corrections of x during the last steps and after them. Only their sizes are searched."""

    name = "cocogen"
    title = "CoCoGen"
    source = "Jacobsen et al. 2024, arXiv 2312.10527"

    def defaults(self, problem: Problem) -> Settings:
        return {"step": 0.25, "after": MOST_CORRECTIONS // 2}

    def search(self, problem: Problem) -> Mapping[str, Spec]:
        return {"step": Range(0.05, 1.0), "after": Range(1, MOST_CORRECTIONS, log=False, whole=True)}

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        return CorrectedSampler(
            problem.base,
            problem.residual,
            step=settings["step"],
            after=settings["after"],
            floor=residual_floor(problem.pde, problem.pde.default_operator),
        )
