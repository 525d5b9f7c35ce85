"""Search while sampling, without training: best of n, and SVDD."""

from envs.common.search import Choice
from pirf_ray.methods.base import Recipe, register

register(
    Recipe(
        name="best-of-n",
        title="best of n",
        paper="this package",
        steerer="best-of-n",
        steerer_settings={"candidates": 8},
        search={"candidates": Choice((2, 4, 8, 16))},
        in_benchmark=False,
    )
)

register(
    Recipe(
        name="svdd",
        title="SVDD",
        paper="Li et al. 2024, arXiv 2408.08252",
        steerer="svdd",
        steerer_settings={"proposals": 8, "temperature": 0.0},
        search={"proposals": Choice((2, 4, 8, 16))},
        in_benchmark=False,
    )
)
