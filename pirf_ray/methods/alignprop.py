"""AlignProp: random truncation, low-rank factors, gradient checkpointing."""

from typing import Any

from pirf_ray.methods.base import Problem, Settings, register
from pirf_ray.methods.reward_tuned import ByReward


@register
class AlignProp(ByReward):
    """Random truncation up to K, low-rank factors of rank 4 with a rate of their own, gradient checkpointing."""

    name = "alignprop"
    title = "AlignProp"
    source = "Prabhudesai et al. 2023, arXiv 2310.03739"
    objective = "alignprop"
    rates = (1e-4, 1e-2)

    def defaults(self, problem: Problem) -> Settings:
        return {"learning_rate": 1e-3, "l2": 1.0}

    def changes(self, settings: Settings) -> dict[str, Any]:
        return {**super().changes(settings), "lora_rank": 4}
