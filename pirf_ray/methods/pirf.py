"""PIRF as the paper has it (Yuan et al. 2025, arXiv 2509.20570), and pirf_ray's own default."""

from collections.abc import Mapping
from typing import Any

from envs.common.search import Range, Spec
from pirf_ray.learning.parameters.layers import LayerMode
from pirf_ray.methods.base import Problem, Settings, register
from pirf_ray.methods.corrected import Corrected
from pirf_ray.methods.reward_tuned import BATCH, PAPER, RewardTuned


class Paper(RewardTuned):
    """K = 2, the plain reward, scope ``all``, top decoder level, lambda ||theta - theta_0||^2 to the pretrained weights."""

    source = "PIRF, Yuan et al. 2025, arXiv 2509.20570"
    mode: LayerMode
    """What happens to the gradient below the learning level."""

    def defaults(self, problem: Problem) -> Settings:
        return {"learning_rate": 1e-4, "l2": 1.0}

    def search(self, problem: Problem) -> Mapping[str, Spec]:
        return {"learning_rate": Range(3e-5, 1e-3), "l2": Range(1e-3, 10.0)}

    def changes(self, settings: Settings) -> dict[str, Any]:
        reward = {"reward_form": "plain", "condition_weight": 0.0}
        return {**PAPER, **reward, "truncation": 2, "levels": 1, "layer_mode": self.mode, **settings}


@register
class Freeze(Paper):
    """Below the learning level the parameters are frozen, the gradient through them is exact."""

    name = "pirf-freeze"
    title = "PIRF (paper), freeze"
    mode = "freeze"


@register
class Truncate(Paper):
    """The gradient is cut at the learning level's inputs."""

    name = "pirf-truncate"
    title = "PIRF (paper), truncate"
    mode = "truncate"


@register
class Uncorrected(RewardTuned):
    """The small preset's form: scope ``tail``, output anchor, all layers, log reward with conditions.

    It has no guard, since trials choose the settings here. It starts with fewer prefixes, since a benchmark's budgets are small.
    """

    name = "pirf-ray-uncorrected"
    title = "pirf_ray, uncorrected"
    source = "this package: scope tail, output anchor"

    def defaults(self, problem: Problem) -> Settings:
        return {"learning_rate": 2e-4, "anchor": 300.0}

    def search(self, problem: Problem) -> Mapping[str, Spec]:
        return {"learning_rate": Range(5e-5, 1e-3), "anchor": Range(10.0, 1000.0)}

    def changes(self, settings: Settings) -> dict[str, Any]:
        return {**BATCH, "guard": "off", "pool_start": 24, "pool_growth": 1.0, "levels": 0, **settings}


@register
class Default(Corrected):
    """The small preset's form with the corrections, as ``train`` and ``generate`` have it."""

    name = "pirf-ray"
    title = "pirf_ray (default)"
    source = "this package: scope tail, output anchor, corrections"
    samples_of = "pirf-ray-uncorrected"
