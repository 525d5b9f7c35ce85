"""Search and guidance while sampling, and finishers of samples, one rule per file. No weights change here."""

from pirf_ray.steering import best_of_n, classifier_free, cocogen, diffusion_pde, finishers, svdd  # noqa: F401  (each registers itself)
from pirf_ray.steering.base import STEERERS, PlainSteerer, SteeredSampler, Steerer, register, steer
from pirf_ray.steering.context import SteeringContext
from pirf_ray.steering.finishers import FINISHERS
from pirf_ray.steering.search import OneDenoiser, Particles, Search

__all__ = [
    "FINISHERS",
    "STEERERS",
    "OneDenoiser",
    "Particles",
    "PlainSteerer",
    "Search",
    "SteeredSampler",
    "Steerer",
    "SteeringContext",
    "register",
    "steer",
]
