"""DRaFT: the reward backpropagated through the last K steps, or through the last one alone from several noises."""

from envs.common.search import Choice, Range
from pirf_ray.methods.base import Recipe, register
from pirf_ray.methods.shared import BY_REWARD

PAPER = "Clark et al. 2024, arXiv 2309.17400"
SEARCH = {"learning_rate": Range(3e-5, 1e-3), "l2": Range(1e-2, 100.0)}

register(
    Recipe(
        name="draft-k",
        title="DRaFT-K",
        paper=PAPER,
        settings={**BY_REWARD, "objective": "pathwise", "truncation": 2},
        search={**SEARCH, "truncation": Choice((1, 2, 4))},
    )
)

register(
    Recipe(
        name="draft-lv",
        title="DRaFT-LV",
        paper=PAPER,
        settings={**BY_REWARD, "objective": "draft-lv", "truncation": 1},
        search=SEARCH,
    )
)
