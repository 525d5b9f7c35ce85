"""Tiny trainings of any registered objective. What an objective needs is read from its class."""

from dataclasses import fields, replace
from functools import cache
from typing import Any

import torch

from envs.common.checks import ConfigError
from envs.rewards import Reward
from pirf_ray.learning.communicator import Communicator
from pirf_ray.learning.credit import CREDITS
from pirf_ray.learning.learner import Learner
from pirf_ray.learning.losses import Batch, Context
from pirf_ray.learning.objectives import OBJECTIVES
from pirf_ray.learning.rollouts.records import Rollouts, join
from pirf_ray.training.settings import TrainConfig
from tiny_models import CPU, tiny_config, tiny_denoiser, tiny_info, tiny_learner, tiny_source

VARIANTS: dict[str, dict[str, Any]] = {
    "pathwise": {"path_kl": 0.1, "solver": "stochastic"},
    "policy-gradient": {"kl": 0.1, "kl_in_return": True, "normalize": False},
    "policy-gradient ": {"kl": 0.1, "ratio": "sequence"},
    "preference": {"online": True, "noise_draws": 2},
    "forward-process": {"noise_draws": 2, "reference_weight": 0.5},
    "surrogate": {"surrogate_kl": 0.1, "solver": "stochastic"},
    "adjoint": {"temperature": 0.5, "truncation": 2},
    "denoising": {"condition_dropped": 0.0},
    "pidm": {"pidm_estimate": "sample"},
}
"""Further settings with which an objective evaluates networks otherwise."""
SMALL = {"data_fields": 16, "surrogate_width": 4}
"""Settings that make a part cheaper, where a part has them."""
CASES = [*((name, {}) for name in OBJECTIVES), *((n.strip(), v) for n, v in VARIANTS.items() if n.strip() in OBJECTIVES)]
IDS = [" ".join([name, *map(str, variant)]) for name, variant in CASES]


def group_of(name: str) -> int:
    """Return the smallest group that the objective and its credit can compare."""
    objective = OBJECTIVES[name]
    return max(objective.min_group, CREDITS[objective.credit].min_group)


def config_of(name: str, **settings: Any) -> TrainConfig:
    """Return a tiny training of the objective, with the largest truncation that it takes."""
    own = {"regularizers": ("l2",), "strategy": "fresh", "group": group_of(name), "guard": "off", "updates": 4}
    if OBJECTIVES[name].stochastic:
        own["solver"] = "stochastic"
    config = tiny_config(**{"objective": name, "truncation": 3, **own, **settings})
    known = {f for group in vars(config).values() if hasattr(group, "__dataclass_fields__") for f in group.__dataclass_fields__}
    config = config.with_settings(**{setting: value for setting, value in SMALL.items() if setting in known})
    try:
        config.learning.parts.make(context_of(config))
    except ConfigError:
        return config.with_settings(truncation=1)
    return config


def context_of(config: TrainConfig) -> Context:
    """Return what the parts know of a training."""
    pde = tiny_info().pde()
    return Context(process=config.sampler.process(pde), pde=pde, truncation=config.truncation_steps)


@cache
def _chunks(name: str, settings: tuple[tuple[str, Any], ...]) -> tuple[TrainConfig, list[Rollouts]]:
    config = config_of(name, **dict(settings))
    return config, [doubled(chunk) for chunk in chunks_of(config)]


def doubled(rollouts: Rollouts) -> Rollouts:
    """Return rollouts as float64."""

    def wide(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: wide(item) for name, item in value.items()}
        return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value

    return replace(rollouts, **{f.name: wide(getattr(rollouts, f.name)) for f in fields(rollouts)})


def double_learner(config: TrainConfig, communicator: Communicator | None = None) -> Learner:
    """Return a learner whose weights are float64, so that rounding is far below every difference that counts."""
    learner = tiny_learner(config, communicator, tiny_denoiser(dtype=torch.float64))
    for learnable in learner.learnables.values():
        learnable.double()
    return learner


def chunks_of(config: TrainConfig, reward: Reward | None = None) -> list[Rollouts]:
    """Return the rollouts of the first update, made by a policy that differs a little from the base model."""
    source = tiny_source(config, reward=reward)
    published = tiny_learner(config, reward=reward).published()
    source.publish(0, {name: tensor + 0.01 * torch.ones_like(tensor) for name, tensor in published.items()})
    return source.batch(0)


def first_batch(name: str, **settings: Any) -> tuple[TrainConfig, list[Rollouts]]:
    """Return the training and the rollouts of its first update, float64. They are made once."""
    return _chunks(name, tuple(settings.items()))


def batch_of(learner: Learner, chunks: list[Rollouts], update: int = 0) -> Batch:
    """Return the whole batch, with the advantages of the learner's credit."""
    return learner._with_advantages(Batch(rollouts=join(chunks, CPU), key=(learner.settings.seed, update)))


def gradient_of(learner: Learner, chunks: list[Rollouts]) -> torch.Tensor:
    """Return the clipped flat gradient of an update, before Adam, which blows rounding up."""
    learner.update(chunks)
    return torch.cat([parameter.grad.flatten() for parameter in learner.optimizer.parameters])
