"""AlignProp: random truncation up to K, low-rank factors with a rate of their own, gradient checkpointing."""

from envs.common.search import Range
from pirf_ray.methods.base import Recipe, register
from pirf_ray.methods.shared import BY_REWARD

register(
    Recipe(
        name="alignprop",
        title="AlignProp",
        paper="Prabhudesai et al. 2023, arXiv 2310.03739",
        settings={
            **BY_REWARD,
            "objective": "alignprop",
            "parameters": "low-rank",
            "lora_rank": 4,
            "learning_rate": 1e-3,
        },
        search={"learning_rate": Range(1e-4, 1e-2), "l2": Range(1e-2, 100.0)},
    )
)
