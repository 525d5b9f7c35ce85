"""The regularizers by name, which hold the tuned model near the reference."""

from pirf_ray.learning.regularizers import output_anchor, weight_distance  # noqa: F401  (each registers itself)
from pirf_ray.learning.regularizers.base import REGULARIZERS, Regularizer, register

__all__ = ["REGULARIZERS", "Regularizer", "register"]
