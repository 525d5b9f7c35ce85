"""CoCoGen: corrections of x during the last steps and after them. Only their sizes are searched."""

from envs.common.search import Range
from pirf_ray.methods.base import Recipe, register

MOST_CORRECTIONS = 20
"""Largest number of corrections after the last step that is searched."""

register(
    Recipe(
        name="cocogen",
        title="CoCoGen",
        paper="Jacobsen et al. 2024, arXiv 2312.10527",
        steerer="cocogen",
        steerer_settings={"step": 0.25, "after": MOST_CORRECTIONS // 2},
        search={"step": Range(0.05, 1.0), "after": Range(1, MOST_CORRECTIONS, log=False, whole=True)},
    )
)
