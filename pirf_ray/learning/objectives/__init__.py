"""Objectives by name, one per file."""

from pirf_ray.learning.objectives import alignprop, draft_lv, pathwise, reft  # noqa: F401  (each registers itself)
from pirf_ray.learning.objectives.base import OBJECTIVES, Objective, find_objective, register

__all__ = ["OBJECTIVES", "Objective", "find_objective", "register"]
