"""Samples ended by pirf_ray's corrections, descent on each sample's residual (pirf_ray.steering.correction)."""

from pirf_ray.diffusion.model import Finisher
from pirf_ray.methods.base import FinishedMethod, Problem, register
from pirf_ray.steering.correction import Correction
from pirf_ray.training.presets import CORRECTIONS


class Corrected(FinishedMethod):
    """The preset's number of corrections, by the operator that every method lowers."""

    def finisher(self, problem: Problem) -> Finisher:
        return Correction(problem.pde, CORRECTIONS, residual=problem.residual)


@register
class CorrectedBase(Corrected):
    """The base model's samples, corrected. Nothing is learned: the difference to ours is what the learned weights add."""

    name = "base-corrected"
    title = "base + our corrections"
    source = "this package: corrections"
    samples_of = "base"
