"""Contrasts of better and worse samples: Diffusion-DPO and DiffusionNFT."""

from envs.common.search import Range
from pirf_ray.methods.base import Recipe, register
from pirf_ray.methods.shared import SAMPLES

register(
    Recipe(
        name="diffusion-dpo",
        title="Diffusion-DPO",
        paper="Wallace et al. 2023, arXiv 2311.12908",
        settings={
            **SAMPLES,
            "objective": "preference",
            "preference_beta": 0.1,
            "learning_rate": 3e-5,
            "group": 2,
            "strategy": "pool",  # the base model makes the pairs, so they never go stale
        },
        search={"learning_rate": Range(1e-5, 1e-3), "preference_beta": Range(1e-3, 10.0)},
        in_benchmark=False,
    )
)

register(
    Recipe(
        name="diffusion-nft",
        title="DiffusionNFT",
        paper="Zheng et al. 2025, arXiv 2509.16117",
        settings={**SAMPLES, "objective": "forward-process", "contrast": 1.0, "learning_rate": 3e-5, "group": 8},
        search={"learning_rate": Range(1e-5, 1e-3), "contrast": Range(0.1, 2.0)},
        in_benchmark=False,
    )
)
