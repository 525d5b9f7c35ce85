"""The base model's samples, as they are and with this package's corrections."""

from pirf_ray.methods.base import Recipe, register
from pirf_ray.training.presets import CORRECTIONS

register(Recipe(name="base", title="base", paper="EDM, Karras et al. 2022, arXiv 2206.00364"))

register(  # the difference to pirf_ray's default is what the learned weights add
    Recipe(
        name="base-corrected",
        title="base + our corrections",
        paper="this package: corrections",
        samples_of="base",
        finisher="correct",
        finisher_settings={"corrections": CORRECTIONS},
    )
)
