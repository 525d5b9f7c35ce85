"""TDM-R1: a surrogate of a black-box reward is learned beside the policy, and its gradient trains the policy."""

from envs.common.search import Range
from pirf_ray.methods.base import Recipe, register
from pirf_ray.methods.shared import SAMPLES

register(
    Recipe(
        name="tdm-r1",
        title="TDM-R1",
        paper="Luo et al. 2026, arXiv 2603.07700",
        settings={
            **SAMPLES,
            "objective": "surrogate",
            "num_steps": 4,
            "solver": "2m",
            "surrogate_rate": 1e-3,
            "learning_rate": 1e-4,
        },
        search={"learning_rate": Range(1e-5, 1e-3), "surrogate_rate": Range(1e-4, 1e-2)},
        in_benchmark=False,
    )
)
