"""PIDM: the diffusion loss on solver data with the residual of the predicted mean, or of a sampled estimate."""

from envs.common.search import Range
from pirf_ray.methods.base import Recipe, register
from pirf_ray.methods.shared import ON_DATA

for estimate in ("mean", "sample"):
    register(
        Recipe(
            name=f"pidm-{estimate}",
            title=f"PIDM, {estimate}",
            paper="Bastek et al. 2024, arXiv 2403.14404",
            settings={
                **ON_DATA,
                "objective": "pidm",
                "pidm_estimate": estimate,
                "pidm_weight": 1e-2,
                "levels": 0,
                "learning_rate": 1e-4,
            },
            search={"learning_rate": Range(3e-5, 1e-3), "pidm_weight": Range(1e-4, 1.0)},
        )
    )
