"""Regularizers: nothing at the start, a pull back after a change, no dependence on the split of a batch."""

from dataclasses import fields, replace
from functools import cache
from typing import Any

import pytest
import torch

from objective_runs import batch_of, doubled, gradient_of
from pirf_ray.learning.learner import Learner
from pirf_ray.learning.losses import Loss
from pirf_ray.learning.regularizers import REGULARIZERS
from pirf_ray.learning.rollouts.records import Rollouts
from pirf_ray.training.settings import TrainConfig
from ranks import on_ranks
from tiny_models import tiny_config, tiny_denoiser, tiny_learner, tiny_source

NAMES = sorted(REGULARIZERS)


def config_of(name: str, strength: float = 1.0, **settings: Any) -> TrainConfig:
    """Return a training with this regularizer alone, all of whose numbers have one value."""
    own = {f.name: strength for f in fields(REGULARIZERS.settings(name)) if f.type in (float, "float")}
    return tiny_config(**{"objective": "pathwise", "strategy": "fresh", "regularizers": (name,), **own, **settings})


@cache
def chunks(name: str) -> list[Rollouts]:
    return [doubled(chunk) for chunk in tiny_source(config_of(name)).batch(0)]


def learner_of(config: TrainConfig, communicator: Any = None) -> Learner:
    return tiny_learner(config, communicator, tiny_denoiser(dtype=torch.float64))


def penalty(learner: Learner, name: str) -> Loss:
    """Return the penalty of the batch, on the graph."""
    batch = batch_of(learner, chunks(name))
    loss = learner.parts.objective.loss(batch, learner.policies, learner.reward)
    (regularizer,) = learner.parts.regularizers
    return regularizer.penalty(batch, learner.policies, loss)


def moved(learner: Learner) -> Learner:
    for tensor in learner.weights().values():
        tensor.add_(0.01)
    return learner


@pytest.mark.parametrize("name", NAMES)
def test_the_penalty_is_zero_at_the_start_and_positive_after_a_change(name: str) -> None:
    """The prefixes are float32, so the base model's output on them is off by about 1e-7 of a field: 1e-13 in the square."""
    learner = learner_of(config_of(name))
    start = penalty(learner, name).value.item()
    after = penalty(moved(learner), name)
    assert 0 <= start < 1e-9 * after.value.item()
    after.value.backward()
    pull = learner.optimizer.flat_gradient()
    assert pull.abs().max() > 0
    assert not any(number.requires_grad for number in after.metrics.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_strength_of_zero_switches_it_off(name: str) -> None:
    learner = moved(learner_of(config_of(name, strength=0.0)))
    made = penalty(learner, name)
    assert made.value.item() == 0 and not made.value.requires_grad
    assert not REGULARIZERS[name].needs_base_output(learner.settings.parts.regularizer_settings)


@pytest.mark.parametrize("name", NAMES)
def test_micro_batches_and_ranks_have_the_gradient_of_the_whole_batch(name: str) -> None:
    config = config_of(name)
    whole = gradient_of(moved(learner_of(config)), chunks(name))
    micro = gradient_of(moved(learner_of(config.with_settings(micro_batch=1))), chunks(name))
    ranks = on_ranks(2, lambda c: gradient_of(moved(learner_of(config, c)), chunks(name)[c.rank : c.rank + 1]))
    for found in (micro, *ranks):
        torch.testing.assert_close(found, whole, rtol=1e-7, atol=1e-10 * whole.abs().max().item())


@pytest.mark.parametrize("name", NAMES)
def test_prefixes_carry_the_base_models_output_only_where_it_is_needed(name: str) -> None:
    for strength in (0.0, 1.0):
        config = config_of(name, strength)
        needed = REGULARIZERS[name].needs_base_output(config.regularizers_settings)
        assert config.with_base_output == config.rollout_task({}).context.with_base_output == needed
    if needed:
        without = [replace(chunk, base_output=None) for chunk in chunks(name)]
        with pytest.raises(ValueError, match="needs the base model's output"):
            learner_of(config).update(without)
