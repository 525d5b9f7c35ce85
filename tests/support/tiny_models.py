"""Small models and settings that tests share."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.pdes import PDE
from envs.rewards import Reward
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.denoiser import AbstractDenoiser, Denoiser
from pirf_ray.diffusion.networks import NetworkConfig
from pirf_ray.diffusion.policy import Policy
from pirf_ray.learning.communicator import Communicator, SingleProcess
from pirf_ray.learning.learner import Learner
from pirf_ray.learning.parameters.attach import tuned_policy
from pirf_ray.learning.rollouts.sources import LocalSource, RolloutWorker
from pirf_ray.training.finetuning import FineTuning, local_tuning
from pirf_ray.training.runs import RunDirectory
from pirf_ray.training.settings import TrainConfig

RESOLUTION = 8
CPU = torch.device("cpu")
TINY: dict[str, Any] = {
    "resolution": RESOLUTION,
    "num_steps": 4,
    "truncation": 2,
    "l2": 0.01,
    "anchor": 1.0,
    "updates": 6,
    "batch": 4,
    "micro_batch": 4,
    "learning_rate": 1e-3,
    "actors": 1,
    "actor_cpus": 0.25,
    "chunk": 2,
    "pool": 8,
    "pool_start": 4,
    "pool_growth": 2,
    "worker_cpus": 0.25,
    "checkpoint_every": 2,
    "guard_samples": 4,
    "guard_every": 2,
    "guard_amplitude": 100.0,
    "guard_energy": 100.0,
    "guard_spectrum": 100.0,
    "samples": 4,
    "real": 16,
}
FRESH: dict[str, Any] = {"strategy": "fresh"}
"""Exact mode unless changed: M = 1, S = 0."""
EXACT: dict[str, Any] = {"scope": "all", **FRESH}
"""Exact mode with the tuned weights at every sigma."""


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


def tiny_config(**settings: Any) -> TrainConfig:
    """Seconds of work; any setting by the name of its flag."""
    return TrainConfig().with_settings(**TINY).with_settings(**settings)


def tiny_info() -> ModelInfo:
    return ModelInfo(env_id="Burgers-v0", network=tiny_network(), sigma_data=0.14)


def tiny_policy(config: TrainConfig, base: Denoiser | None = None) -> Policy:
    return tuned_policy(base or tiny_denoiser(), config.process, config.policy, config.learning_parameters)


def tiny_learner(
    config: TrainConfig,
    communicator: Communicator | None = None,
    base: AbstractDenoiser | None = None,
    reward: Reward | None = None,
) -> Learner:
    pde = tiny_info().pde()
    return Learner(
        config.learning,
        base or tiny_denoiser(),
        process=config.process,
        pde=pde,
        reward=reward or config.make_reward(pde),
        communicator=communicator or SingleProcess(),
        device=CPU,
    )


def tiny_worker(config: TrainConfig, base: AbstractDenoiser | None = None, reward: Reward | None = None) -> RolloutWorker:
    return RolloutWorker(config.rollout_task({}), base or tiny_denoiser(), reward=reward)


def tiny_source(config: TrainConfig, base: AbstractDenoiser | None = None, reward: Reward | None = None) -> LocalSource:
    worker = tiny_worker(config, base, reward)
    return LocalSource(config.plan(), worker, fixed=config.fixed_rollouts, staleness=config.rollout.staleness)


def tiny_tuning(config: TrainConfig, run: RunDirectory | None = None, reward: Reward | None = None) -> FineTuning:
    """A fine-tuning of the run's base model, or of the tiny denoiser, in this process."""
    return local_tuning(config, tiny_info(), run.load_base()[1] if run else tiny_denoiser(), run=run, reward=reward)


def start_run(path: Path, config: TrainConfig) -> RunDirectory:
    """A new run directory of the tiny base model below ``path``."""
    return RunDirectory.create(path / "run", config, write_base(path / "base"))


def write_base(path: Path, denoiser: Denoiser | None = None) -> Path:
    """A base checkpoint of the tiny denoiser."""
    denoiser = denoiser or tiny_denoiser()
    tensors = denoiser.network.state_dict()
    checkpoints.save(path, info=tiny_info(), model=None, ema=tensors, optimizer=None, config={}, meta={"kind": "base"})
    return path


def observed_order(spacings: "list[float] | np.ndarray", errors: list[float]) -> float:
    """Slope of ln error over ln spacing."""
    return np.polyfit(np.log(spacings), np.log(errors), 1)[0]


def assert_symmetric(pde: PDE, fields_: torch.Tensor) -> None:
    """Random symmetries of the PDE change the fields and none of their residuals and conditions."""
    moved = pde.augment(fields_, np.random.default_rng(0))
    assert not torch.equal(moved, fields_)
    for operator in pde.operators:
        torch.testing.assert_close(pde.residual(moved, operator), pde.residual(fields_, operator))
    for condition in pde.conditions.values():
        torch.testing.assert_close(condition(moved), condition(fields_))
