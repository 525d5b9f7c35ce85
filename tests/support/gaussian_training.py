"""Training on the problem with exact answers, through the product's own rollouts and learner."""

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from envs.numerics import seeding
from envs.numerics.grids import Axis, Grid
from envs.numerics.normalization import Normalizer
from envs.pdes import PDE, register
from envs.rewards import FunctionReward
from gaussian_problem import GaussianProblem, log_likelihood, problem
from pirf_ray.diffusion.analytic import AffineDenoiser
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import SampleBatch, finish, step_noise
from pirf_ray.metrics.exact import Gaussian, errors
from pirf_ray.metrics.exact_chains import Chain, base_chain
from pirf_ray.training.finetuning import FineTuning, local_tuning
from pirf_ray.training.settings import TrainConfig
from tiny_models import tiny_network

GRADED = 4096
"""Samples on which a training is graded."""
SETTINGS: dict[str, Any] = {
    "env": "GaussianField-v0",
    "resolution": 8,
    "num_steps": 10,
    "truncation": 10,
    "solver": "stochastic",
    "step_covariance": "exact",
    "scope": "all",
    "strategy": "fresh",
    "batch": 256,
    "micro_batch": 256,
    "chunk": 256,
    "clip_norm": 1e9,
    "regularizers": (),
    "guard": "off",
    "ema_decay": 0.99,
    "workers": 1,
    "actors": 1,
}


@register
class GaussianField(PDE):
    """A Gaussian law of fields, without an equation."""

    env_id = "GaussianField-v0"
    equation = "x ~ N(0, C)"
    channels = ("x",)
    units = "none"
    solver = "draws of the law"
    default_operator = ""
    unrewarded_operator = ""
    default_resolution = 8

    @property
    def grid(self) -> Grid:
        rows, columns = (Axis(name=name, extent=1.0, size=self.resolution, layout="cell") for name in "yx")
        return Grid(rows=rows, columns=columns)

    @property
    def normalizer(self) -> Normalizer:
        return Normalizer(scale=(1.0,), shift=(0.0,))

    @property
    def law(self):
        return problem().law

    def solve(self, seed: int, stream: str, sample_ids) -> torch.Tensor:
        return self.law.draw(seeding.normal(seed, stream, sample_ids, self.shape))


@dataclass(frozen=True)
class Graded:
    """A trained policy's samples against a law."""

    samples: torch.Tensor
    reward: float
    seconds: float
    tuning: FineTuning

    def errors(self, target: Gaussian) -> tuple[float, float]:
        return errors(self.samples, target)


@cache
def info() -> ModelInfo:
    return ModelInfo(env_id="GaussianField-v0", network=tiny_network(), sigma_data=0.5)


def reward_of(beta: float = 1.0, *, differentiable: bool = True) -> FunctionReward:
    """The log-likelihood over beta, so that a KL of strength 1 claims the tilt of this beta."""
    return FunctionReward(lambda fields: log_likelihood(fields) / beta, differentiable=differentiable, name="log-likelihood")


def settings(**changes: Any) -> TrainConfig:
    """Settings of a training on the problem."""
    return TrainConfig().with_settings(**{**SETTINGS, **changes})


def exact(config: TrainConfig) -> tuple[GaussianProblem, Chain]:
    """The problem and the base chain of the settings."""
    process = config.sampler.process(GaussianField(8))
    return problem(), base_chain(process, problem().law)


def train(*, differentiable: bool = True, constant: bool = False, updates: int, **changes: Any) -> Graded:
    """Train an affine policy in this process, and sample it."""
    config = settings(updates=updates, **changes)
    process = config.sampler.process(GaussianField(8))
    base = AffineDenoiser(problem().law, process.sigmas)
    own = (
        FunctionReward(lambda f: f.new_zeros(len(f)), differentiable=False)
        if constant
        else reward_of(differentiable=differentiable)
    )
    tuning = local_tuning(config, info(), base, reward=own)
    started = time.perf_counter()
    tuning.fit()
    seconds = time.perf_counter() - started
    samples = sample(tuning.kept_policy(), config)
    return Graded(samples=samples, reward=log_likelihood(samples).mean().item(), seconds=seconds, tuning=tuning)


@torch.no_grad()
def sample(policy: Policy, config: TrainConfig, count: int = GRADED) -> torch.Tensor:
    """Finished samples (count, 1, 8, 8) of a policy."""
    process = config.sampler.process(GaussianField(8))
    ids = range(count)
    noise = seeding.normal(1, "graded", ids, (1, 8, 8)).float()
    batch = SampleBatch(seed=1, stream="graded", ids=ids)
    return finish(process, policy.denoisers(process), process.initial(noise), step_noise(process, batch, noise)).double()
