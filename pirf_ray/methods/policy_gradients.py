"""Policy gradients of denoising: DDPO, GRPO as published, and GRPO with the KL in the return."""

from envs.common.search import Range
from pirf_ray.methods.base import Recipe, register
from pirf_ray.methods.shared import CHAINS

RATE = {"learning_rate": Range(1e-5, 1e-3)}
GROUPS = {**CHAINS, "objective": "policy-gradient", "credit": "group", "learning_rate": 1e-4}

register(
    Recipe(
        name="ddpo",
        title="DDPO",
        paper="Black et al. 2023, arXiv 2305.13301",
        settings={**GROUPS, "kl": 0.0},
        search=RATE,
        in_benchmark=False,
    )
)
register(
    Recipe(
        name="grpo",
        title="GRPO",
        paper="Flow-GRPO, Liu et al. 2025, arXiv 2505.05470",
        settings={**GROUPS, "kl": 0.04},
        search={**RATE, "kl": Range(1e-3, 10.0)},
        in_benchmark=False,
    )
)
register(
    Recipe(
        name="grpo-exact",
        title="GRPO, KL in the return",
        paper="this package: the exact KL-regularized objective",
        settings={**GROUPS, "kl": 1.0, "kl_in_return": True, "normalize": False},
        search={**RATE, "kl": Range(1e-3, 10.0)},
        claims_tilt=True,
        in_benchmark=False,
    )
)
