"""``train --list KIND``: what is registered, one line each."""

import importlib

from envs.common.registry import KINDS, unknown

ROOMS = (
    "envs.pdes",
    "envs.rewards",
    "pirf_ray.diffusion.losses",
    "pirf_ray.diffusion.sampling",
    "pirf_ray.metrics",
    "pirf_ray.steering",
    "pirf_ray.learning.objectives",
    "pirf_ray.learning.rollouts",
    "pirf_ray.learning.credit",
    "pirf_ray.learning.regularizers",
    "pirf_ray.learning.parameters",
    "pirf_ray.methods",
)
"""Modules that register the parts of this package."""


def listing(kind: str) -> list[str]:
    """Return a line per registered part of a kind. ValueError names the known kinds."""
    for room in ROOMS:
        importlib.import_module(room)
    if kind not in KINDS:
        raise ValueError(f"--list: {unknown('kind', kind, KINDS)}")
    return KINDS[kind].describe()
