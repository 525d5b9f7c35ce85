"""ReFT: the reward of a one-step prediction from a random late step."""

from envs.common.search import Range
from pirf_ray.methods.base import Recipe, register
from pirf_ray.methods.shared import BY_REWARD

register(
    Recipe(
        name="reft",
        title="ReFT",
        paper="ReFL, Xu et al. 2023, arXiv 2304.05977",
        settings={**BY_REWARD, "objective": "reft"},
        search={"learning_rate": Range(3e-5, 1e-3), "l2": Range(1e-2, 100.0)},
    )
)
