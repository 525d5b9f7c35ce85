"""Small models and settings that tests share."""

import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from envs.pdes import PDE
from pirf_ray import checkpoints
from pirf_ray.checkpoints import ModelInfo
from pirf_ray.config import (
    EvaluationSettings,
    GuardSettings,
    LearnerSettings,
    OptimizerSettings,
    PirfSettings,
    RegularizationSettings,
    RolloutSettings,
    SamplerSettings,
    TrainConfig,
)
from pirf_ray.denoiser import Denoiser
from pirf_ray.networks import NetworkConfig

RESOLUTION = 8


def tiny_network(**changes: object) -> NetworkConfig:
    return replace(
        NetworkConfig(resolution=RESOLUTION, model_channels=8, channel_mult=(1, 2), num_blocks=1, periodic=(False, True)),
        **changes,
    )


def tiny_denoiser(*, dtype: torch.dtype = torch.float32, seed: int = 0, sigma_data: float = 0.14) -> Denoiser:
    """A network whose every tensor is random, so that no gradient vanishes as it does at EDM's near-zero output layers."""
    generator = torch.Generator().manual_seed(seed)
    denoiser = Denoiser(tiny_network(), sigma_data).to(dtype).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(dtype))
    return denoiser


def tiny_config(**groups: object) -> TrainConfig:
    """Seconds of work; keyword arguments replace whole groups or top-level fields."""
    defaults: dict[str, object] = {
        "resolution": RESOLUTION,
        "sampler": SamplerSettings(num_steps=4),
        "pirf": PirfSettings(truncation=2),
        "regularization": RegularizationSettings(l2=0.01, anchor=1.0),
        "optimizer": OptimizerSettings(updates=6, batch=4, micro_batch=4, learning_rate=1e-3),
        "rollout": RolloutSettings(actors=1, actor_cpus=0.25, chunk=2, pool=8, pool_start=4, pool_growth=2),
        "learner": LearnerSettings(worker_cpus=0.25, worker_threads=1, checkpoint_every=2),
        "guard": GuardSettings(guard_samples=4, guard_every=2, guard_amplitude=100.0, guard_energy=100.0, guard_spectrum=100.0),
        "evaluation": EvaluationSettings(samples=4, real=16),
    }
    return TrainConfig(**{**defaults, **groups})


def fresh_rollouts(**changes: object) -> RolloutSettings:
    """Exact mode unless changed: M = 1, S = 0."""
    return replace(RolloutSettings(actors=1, actor_cpus=0.25, chunk=2, strategy="fresh", pool=8, pool_start=4), **changes)


def tiny_info() -> ModelInfo:
    return ModelInfo(env_id="Burgers-v0", network=tiny_network(), sigma_data=0.14)


def write_base(path: Path, denoiser: Denoiser | None = None) -> Path:
    """A base checkpoint of the tiny denoiser."""
    denoiser = denoiser or tiny_denoiser()
    tensors = denoiser.network.state_dict()
    checkpoints.save(path, info=tiny_info(), model=None, ema=tensors, optimizer=None, config={}, meta={"kind": "base"})
    return path


def observed_order(spacings: Sequence[float] | np.ndarray, errors: Sequence[float]) -> float:
    """Slope of ln error over ln spacing."""
    return np.polyfit(np.log(spacings), np.log(errors), 1)[0]


def assert_symmetric(pde: PDE, fields: torch.Tensor) -> None:
    """Random symmetries of the PDE change the fields and none of their residuals and conditions."""
    moved = pde.augment(fields, np.random.default_rng(0))
    assert not torch.equal(moved, fields)
    for operator in pde.operators:
        torch.testing.assert_close(pde.residual(moved, operator), pde.residual(fields, operator))
    for condition in pde.conditions.values():
        torch.testing.assert_close(condition(moved), condition(fields))


def wait_for(condition: Callable[[], object], timeout: float = 300) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.2)


def ray_processes(parent: int, name: str) -> list[int]:
    """Descendants of ``parent`` whose command line holds ``name``."""
    listed = subprocess.run(["ps", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True).stdout
    rows = [(int(pid), int(ppid), args) for pid, ppid, args in (line.split(None, 2) for line in listed.splitlines())]
    family = {parent}
    while grown := {pid for pid, ppid, _ in rows if ppid in family} - family:
        family |= grown
    return [pid for pid, _, args in rows if pid in family and name in args]
