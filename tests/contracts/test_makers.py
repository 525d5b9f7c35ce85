"""Makers of rollouts: their kind, their cost, their samples, their rewards."""

import pickle
from dataclasses import fields
from typing import Any

import pytest
import torch

from pirf_ray.learning.objectives import OBJECTIVES
from pirf_ray.learning.rollouts import MAKERS, Rollouts
from pirf_ray.learning.rollouts.sources import RolloutWorker
from pirf_ray.metrics.cost import Meter
from pirf_ray.training.settings import TrainConfig
from recorded_reward import RecordedReward
from tiny_models import tiny_config, tiny_denoiser, tiny_worker

NAMES = sorted(MAKERS)
SMALL = {"data_fields": 8}
"""Settings that make a part cheaper, where a part has them."""


def config_of(name: str, solver: str = "heun", **settings: Any) -> TrainConfig:
    """Return a training whose objective uses the maker."""
    objective = next(o for o, cls in OBJECTIVES.items() if name in cls.makers and o != "draft-lv")
    own = {"objective": objective, "maker": name, "solver": solver, "regularizers": ("l2",), "strategy": "fresh", "group": 2}
    config = tiny_config(**{**own, **settings})
    known = {f.name for f in fields(config.maker_settings)}
    return config.with_settings(**{setting: value for setting, value in SMALL.items() if setting in known})


def worker_of(config: TrainConfig, reward: RecordedReward | None = None) -> RolloutWorker:
    """Return a worker whose tuned weights differ from the base model's."""
    worker = tiny_worker(config, reward=reward or RecordedReward())
    worker.load(dict(tiny_denoiser(seed=1).network.named_parameters()))
    return worker


def tensors(rollouts: Rollouts) -> list[torch.Tensor]:
    values = [getattr(rollouts, f.name) for f in fields(rollouts)]
    nested = [item for value in values for item in (value.values() if isinstance(value, dict) else [value])]
    return [item for item in nested if isinstance(item, torch.Tensor)]


@pytest.mark.parametrize("name", NAMES)
def test_rollouts_are_of_the_makers_kind_and_have_the_header_that_was_asked_for(name: str) -> None:
    config = config_of(name)
    made = worker_of(config).make(3, 5)
    assert type(made) is MAKERS[name].makes
    assert (made.sample_ids, made.groups, made.policy_version) == ((6, 7), (3, 3), 5)
    assert {tensor.dtype for tensor in tensors(made)} == {torch.float32}
    assert not any(tensor.requires_grad for tensor in tensors(made))
    assert all(bool(tensor.isfinite().all()) for tensor in tensors(made))


@pytest.mark.parametrize("solver", ["heun", "euler", "2m", "stochastic"])
@pytest.mark.parametrize("name", NAMES)
def test_the_cost_is_what_the_meter_counts(name: str, solver: str) -> None:
    config = config_of(name, solver)
    worker = worker_of(config)
    with Meter() as meter:
        worker.make(0, 0)
    assert meter.cost.network_forwards / config.rollout.chunk == worker.maker.cost(worker.env.process)
    assert meter.cost.network_gradients == 0


def test_the_base_models_output_has_its_cost() -> None:
    config = config_of("prefixes", objective="pathwise", regularizers=("anchor",))
    worker = worker_of(config)
    with Meter() as meter:
        worker.make(0, 0)
    assert meter.cost.network_forwards / config.rollout.chunk == worker.maker.cost(worker.env.process)


@pytest.mark.parametrize("name", NAMES)
def test_a_chunk_that_is_made_again_has_the_same_bits(name: str) -> None:
    """Also after other chunks, and in another worker."""
    config = config_of(name)
    first, second = worker_of(config), worker_of(config)
    made = first.make(1, 0)
    second.make(4, 0)
    for again in (first.make(1, 0), second.make(1, 0), pickle.loads(pickle.dumps(made))):
        assert all(torch.equal(a, b) for a, b in zip(tensors(again), tensors(made), strict=True))
    assert not torch.equal(first.make(2, 0).x, made.x)


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_chunk(name: str) -> None:
    """Its noise and its reward follow its id. Networks on batches of other sizes differ by rounding, about 1e-6 of a field."""
    small, large = (worker_of(config_of(name, chunk=size)) for size in (2, 4))
    whole = large.make(0, 0)
    parts = [small.make(i, 0) for i in (0, 1)]
    for i, part in enumerate(parts):
        for ours, theirs in zip(tensors(part), tensors(whole.select(slice(2 * i, 2 * i + 2))), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * max(1.0, theirs.abs().max().item()))


@pytest.mark.parametrize("name", NAMES)
def test_rewards_are_asked_for_once_where_rollouts_carry_them(name: str) -> None:
    """Without a graph. A maker without rewards computes none."""
    reward = RecordedReward()
    worker_of(config_of(name), reward).make(0, 0)
    assert reward.rows == ([2] if MAKERS[name].rewarded else [])
    assert not any(call.with_graph for call in reward.calls)
