"""PIRF as published: K = 2, the plain reward, scope ``all``, the top decoder level, the distance to the pretrained weights.

Below the learning level the gradient passes frozen layers (``freeze``), or it is cut at the level's inputs (``truncate``).
"""

from envs.common.search import Range
from pirf_ray.methods.base import Recipe, register
from pirf_ray.methods.shared import PUBLISHED

for mode in ("freeze", "truncate"):
    register(
        Recipe(
            name=f"pirf-{mode}",
            title=f"PIRF (paper), {mode}",
            paper="PIRF, Yuan et al. 2025, arXiv 2509.20570",
            settings={
                **PUBLISHED,
                "objective": "pathwise",
                "truncation": 2,
                "levels": 1,
                "layer_mode": mode,
                "reward_form": "plain",
                "condition_weight": 0.0,
                "learning_rate": 1e-4,
                "l2": 1.0,
            },
            search={"learning_rate": Range(3e-5, 1e-3), "l2": Range(1e-3, 10.0)},
        )
    )
