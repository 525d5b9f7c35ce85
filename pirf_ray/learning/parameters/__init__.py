"""The learning parameters by name, one kind per file."""

from pirf_ray.learning.parameters import layers, low_rank, residual_adapter  # noqa: F401  (each registers itself)
from pirf_ray.learning.parameters.base import PARAMETERS, Group, Parameters, register

__all__ = ["PARAMETERS", "Group", "Parameters", "register"]
