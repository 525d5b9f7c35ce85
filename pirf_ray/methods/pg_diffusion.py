"""PG-Diffusion: the residual's gradient as a condition of an adapter, with classifier-free guidance."""

from envs.common.search import Range
from pirf_ray.methods.base import Recipe, register
from pirf_ray.methods.shared import ON_DATA

register(
    Recipe(
        name="pg-diffusion",
        title="PG-Diffusion",
        paper="Shu et al. 2023, J. Comput. Phys. 478, 111972",
        settings={**ON_DATA, "objective": "denoising", "parameters": "residual-adapter", "learning_rate": 1e-3},
        sampler="classifier-free",
        sampler_settings={"scale": 1.0},
        search={"learning_rate": Range(1e-4, 1e-2), "scale": Range(0.5, 3.0, log=False)},
    )
)
