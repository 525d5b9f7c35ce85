"""Methods by name, in the order of the tables."""

from pirf_ray.methods import (  # noqa: I001  (each registers itself, in the tables' order)
    plain,
    corrected,
    diffusion_pde,
    cocogen,
    pg_diffusion,
    pidm,
    draft,
    alignprop,
    reft,
    pirf,
)
from pirf_ray.methods.base import METHODS, Follower, Method, Problem, Sampler, Settings, Weights, find_method, register

__all__ = [
    "METHODS",
    "Follower",
    "Method",
    "Problem",
    "Sampler",
    "Settings",
    "Weights",
    "alignprop",
    "cocogen",
    "corrected",
    "diffusion_pde",
    "draft",
    "find_method",
    "pg_diffusion",
    "pidm",
    "pirf",
    "plain",
    "reft",
    "register",
]
