"""Objectives by name, one per file."""

from pirf_ray.learning.losses import Batch, Context, Loss
from pirf_ray.learning.objectives import (  # noqa: F401  (each registers itself)
    adjoint,
    alignprop,
    denoising,
    draft_lv,
    forward_process,
    pathwise,
    pidm,
    policy_gradient,
    preference,
    reft,
    surrogate,
)
from pirf_ray.learning.objectives.base import OBJECTIVES, Objective, register

__all__ = ["OBJECTIVES", "Batch", "Context", "Loss", "Objective", "register"]
