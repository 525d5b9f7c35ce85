"""This package's default: the small preset, without and with the corrections that ``train`` and ``generate`` make.

Scope ``tail``, output anchor, all layers, the log reward with conditions. There is no guard, since trials choose the settings
here. The pool starts small, since a benchmark's budgets are small.
"""

from envs.common.search import Range
from pirf_ray.methods.base import Recipe, register
from pirf_ray.methods.shared import BATCH
from pirf_ray.training.presets import CORRECTIONS

register(
    Recipe(
        name="pirf-ray-uncorrected",
        title="pirf_ray, uncorrected",
        paper="this package: scope tail, output anchor",
        settings={
            **BATCH,
            "objective": "pathwise",
            "guard": "off",
            "pool_start": 24,
            "pool_growth": 1.0,
            "levels": 0,
            "learning_rate": 2e-4,
            "anchor": 300.0,
        },
        search={"learning_rate": Range(5e-5, 1e-3), "anchor": Range(10.0, 1000.0)},
    )
)

register(
    Recipe(
        name="pirf-ray",
        title="pirf_ray (default)",
        paper="this package: scope tail, output anchor, corrections",
        samples_of="pirf-ray-uncorrected",
        finisher="correct",
        finisher_settings={"corrections": CORRECTIONS},
    )
)
