"""DiffusionPDE: guidance by the gradient of the residual's norm, through the network."""

from envs.common.search import Range
from pirf_ray.methods.base import Recipe, register

register(
    Recipe(
        name="diffusion-pde",
        title="DiffusionPDE",
        paper="Huang et al. 2024, arXiv 2406.17763",
        steerer="diffusion-pde",
        steerer_settings={"guidance": 0.1},
        search={"guidance": Range(0.01, 1.0)},
    )
)
