"""Fine-tuning presets: one code path at three scales."""

from collections.abc import Callable
from typing import Any

from envs.pdes import REGISTRY
from pirf_ray.training.settings import TrainConfig

CORRECTIONS = 20
"""Corrections of a sample take milliseconds; its network evaluations take tenths of a second on two cores."""
WORKERS: dict[str, Any] = {"workers": 2, "worker_threads": 1}
"""Two workers of one thread. Two threads of one worker wait for each other in a loop, and are much slower beside any other
process (docs/results/kills_and_scaling.md)."""


def _corrections(env: str, number: int) -> int:
    """Return the number of corrections, 0 for a PDE without operators."""
    return number if env not in REGISTRY or REGISTRY[env].default_operator else 0


def smoke(env: str) -> TrainConfig:
    """Return settings for tests: seconds, on the small preset's base model."""
    return TrainConfig(env=env).with_settings(
        num_steps=5,
        corrections=_corrections(env, 2),
        truncation=2,
        updates=4,
        batch=8,
        micro_batch=8,
        actor_cpus=0.25,
        chunk=4,
        pool=16,
        pool_start=8,
        pool_growth=4,
        worker_cpus=0.25,
        checkpoint_every=2,
        guard_samples=8,
        guard_every=2,
        guard_amplitude=0.5,
        guard_energy=2.0,
        guard_spectrum=2.0,
        samples=8,
        real=64,
    )


FINE: dict[str, Any] = {
    "batch": 8,
    "micro_batch": 8,
    "learning_rate": 1.5e-4,
    "schedule": "cosine",
    "ema_decay": 0.95,
    "chunk": 4,
    "pool": 512,
    "pool_growth": 0.5,
    "guard_every": 50,
    "guard_patience": 3,
}
"""Where every jitter of the weights is seen in the residual: many small updates that come to rest do best."""
VERTEX_ELLIPTIC: dict[str, Any] = {**FINE, "truncation": 3, "updates": 560, "anchor_inputs": 5.0, "reference_noise": 3e-5}
SMALL: dict[str, dict[str, Any]] = {
    "Burgers-v0": {"levels": 3, "layer_mode": "freeze", "anchor": 80.0, "learning_rate": 2.4e-4},
    "Darcy-v0": {
        **FINE,
        "updates": 430,
        "learning_rate": 1.2e-4,
        "reference_noise": 1e-4,
    },
    "Helmholtz-v0": VERTEX_ELLIPTIC,
    "Kolmogorov-v0": {**FINE, "updates": 300, "anchor_inputs": 30.0},
    "Poisson-v0": VERTEX_ELLIPTIC,
}
"""Settings by PDE where they differ from TrainConfig's. The reference noise is smaller where the base model's residual is about
the default's reference already."""


def small(env: str) -> TrainConfig:
    """Return settings for minutes on two cores: 32x32 fields, the shipped base model."""
    corrections = _corrections(env, CORRECTIONS)
    return TrainConfig(env=env).with_settings(**{**WORKERS, "corrections": corrections, **SMALL.get(env, {})})


def paper(env: str) -> TrainConfig:
    """Return settings of Yuan et al. 2025 (arXiv 2509.20570): 128x128 on one GPU that learner and actors share."""
    return TrainConfig(env=env).with_settings(
        resolution=128,
        truncation=2,
        scope="all",
        levels=1,
        layer_mode="freeze",
        reward_form="plain",
        condition_weight=0.0,
        l2=1.0,
        anchor=0.0,
        updates=2000,
        batch=40,
        micro_batch=20,
        learning_rate=1e-4,
        ema_decay=0.99,
        actors=2,
        actor_cpus=1,
        actor_gpus=0.2,
        actor_threads=4,
        chunk=20,
        strategy="fresh",
        reuse=1,
        staleness=1,
        worker_cpus=1,
        worker_gpus=0.5,
        worker_threads=4,
        checkpoint_every=100,
        guard_samples=256,
        guard_every=100,
        samples=1600,
        real=2048,
    )


PRESETS: dict[str, Callable[[str], TrainConfig]] = {"smoke": smoke, "small": small, "paper": paper}

DEFAULT_PRESET = "small"
"""The preset whose base model ships; paper needs the user's own base model."""
