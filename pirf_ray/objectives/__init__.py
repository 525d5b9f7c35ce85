"""Objectives by name, one a file."""

from pirf_ray.objectives import alignprop, draft_lv, pathwise, reft  # noqa: F401  (each registers itself)
from pirf_ray.objectives.base import OBJECTIVES, Objective, find_objective, register

__all__ = ["OBJECTIVES", "Objective", "find_objective", "register"]
