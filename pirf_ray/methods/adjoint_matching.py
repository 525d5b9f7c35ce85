"""Adjoint matching: regression on the lean adjoint of the reward along the model's own chains."""

from envs.common.search import Range
from pirf_ray.methods.base import Recipe, register
from pirf_ray.methods.shared import CHAINS

register(
    Recipe(
        name="adjoint-matching",
        title="adjoint matching",
        paper="Domingo-Enrich et al. 2024, arXiv 2409.08861",
        settings={**CHAINS, "objective": "adjoint", "temperature": 1.0, "learning_rate": 1e-4},
        search={"learning_rate": Range(1e-5, 1e-3), "temperature": Range(1e-2, 10.0)},
        claims_tilt=True,
        in_benchmark=False,
    )
)
