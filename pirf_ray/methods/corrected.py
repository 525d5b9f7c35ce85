"""Samples ended by pirf_ray's corrections, descent on each one's residual (pirf_ray.correction), and the base's so ended."""

import torch

from pirf_ray.correction import correct, residual_floor
from pirf_ray.methods.base import Follower, Problem, register
from pirf_ray.presets import CORRECTIONS


class Corrected(Follower):
    """The preset's number of corrections, by the operator that every method lowers."""

    def finish(self, problem: Problem, x: torch.Tensor) -> torch.Tensor:
        pde = problem.pde
        floor = residual_floor(pde, pde.default_operator)
        return correct(x, problem.residual, steps=CORRECTIONS, floor=floor, given=pde.input_channels)


@register
class CorrectedBase(Corrected):
    """Nothing is learned: what is left is what the learned weights add."""

    name = "base-corrected"
    title = "base + our corrections"
    source = "this package: corrections"
    follows = "base"
