"""Methods by name: recipes, one paper a file, in the order of the tables."""

from pirf_ray.methods import (  # noqa: I001  (each registers itself, in the tables' order)
    plain,  # noqa: F401
    diffusion_pde,  # noqa: F401
    cocogen,  # noqa: F401
    pg_diffusion,  # noqa: F401
    pidm,  # noqa: F401
    draft,  # noqa: F401
    alignprop,  # noqa: F401
    reft,  # noqa: F401
    pirf,  # noqa: F401
    default,  # noqa: F401
    policy_gradients,  # noqa: F401
    contrasts,  # noqa: F401
    adjoint_matching,  # noqa: F401
    tdm_r1,  # noqa: F401
    search,  # noqa: F401
)
from pirf_ray.methods.base import METHODS, Problem, Recipe, Settings, Weights, find_method, register

__all__ = ["METHODS", "Problem", "Recipe", "Settings", "Weights", "find_method", "register"]
