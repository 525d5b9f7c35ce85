"""Methods by name, in the order of the tables."""

from pirf_ray.methods import (  # noqa: I001  (each registers itself, in the tables' order)
    plain,  # noqa: F401
    corrected,  # noqa: F401
    steered,  # noqa: F401
    pg_diffusion,  # noqa: F401
    pidm,  # noqa: F401
    draft,  # noqa: F401
    alignprop,  # noqa: F401
    reft,  # noqa: F401
    pirf,  # noqa: F401
)
from pirf_ray.methods.base import METHODS, FinishedMethod, Method, Problem, Settings, Weights, find_method, register

__all__ = ["METHODS", "FinishedMethod", "Method", "Problem", "Settings", "Weights", "find_method", "register"]
