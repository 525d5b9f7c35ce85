"""DRaFT: the reward backpropagated through the last K steps, or through the last one alone from several noises."""

import optuna

from pirf_ray.methods.base import Problem, Settings, register
from pirf_ray.methods.reward_tuned import ByReward


@register
class DraftK(ByReward):
    """K is searched."""

    name = "draft-k"
    title = "DRaFT-K"
    source = "Clark et al. 2024, arXiv 2309.17400"
    objective = "pathwise"

    def defaults(self, problem: Problem) -> Settings:
        return {**super().defaults(problem), "truncation": 2}

    def suggest(self, trial: optuna.Trial, problem: Problem) -> Settings:
        return {**super().suggest(trial, problem), "truncation": trial.suggest_categorical("truncation", [1, 2, 4])}


@register
class DraftLV(ByReward):
    name = "draft-lv"
    title = "DRaFT-LV"
    source = "Clark et al. 2024, arXiv 2309.17400"
    objective = "draft-lv"
    truncation = 1
