"""DRaFT: the reward backpropagated through the last K steps, or through the last one alone from several noises."""

from collections.abc import Mapping

from envs.common.search import Choice, Spec
from pirf_ray.methods.base import Problem, Settings, register
from pirf_ray.methods.reward_tuned import ByReward


@register
class DraftK(ByReward):
    """The last K steps; K is searched."""

    name = "draft-k"
    title = "DRaFT-K"
    source = "Clark et al. 2024, arXiv 2309.17400"
    objective = "pathwise"

    def defaults(self, problem: Problem) -> Settings:
        return {**super().defaults(problem), "truncation": 2}

    def search(self, problem: Problem) -> Mapping[str, Spec]:
        return {**super().search(problem), "truncation": Choice((1, 2, 4))}


@register
class DraftLV(ByReward):
    """The last step alone, from several noises."""

    name = "draft-lv"
    title = "DRaFT-LV"
    source = "Clark et al. 2024, arXiv 2309.17400"
    objective = "draft-lv"
    truncation = 1
