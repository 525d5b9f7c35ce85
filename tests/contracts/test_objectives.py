"""Objectives: equal on every split over ranks, their cost, their use of the reward, resuming, names."""

from pathlib import Path
from typing import Any

import pytest
import torch

from envs.common.checks import ConfigError
from objective_runs import CASES, IDS, batch_of, chunks_of, config_of, double_learner, first_batch, gradient_of
from pirf_ray.learning.objectives import OBJECTIVES, register
from pirf_ray.metrics.cost import Meter
from pirf_ray.training.checks import check_parts
from ranks import on_ranks
from recorded_reward import RecordedReward
from registries import restored
from tiny_models import start_run, tiny_info, tiny_learner, tiny_source, tiny_tuning

NAMES = sorted(OBJECTIVES)


def assert_same_gradient(found: torch.Tensor, expected: torch.Tensor) -> None:
    """Float64 sums in another order differ by about 1e-15 of their terms, which are at most 1e4 times the largest entry."""
    largest = expected.abs().max().item()
    assert largest > 0 and expected.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-10 * largest)


@pytest.mark.parametrize(("name", "variant"), CASES, ids=IDS)
def test_every_split_over_ranks_has_the_gradient_of_the_whole_batch(name: str, variant: dict[str, Any]) -> None:
    """Of 1 rank against 2, each with half of the samples: random choices follow the key and the ids."""
    config, chunks = first_batch(name, **variant)
    whole = gradient_of(double_learner(config), chunks)
    first, second = on_ranks(2, lambda c: gradient_of(double_learner(config, c), chunks[c.rank : c.rank + 1]))
    assert torch.equal(first, second)
    assert_same_gradient(first, whole)


@pytest.mark.parametrize(("name", "variant"), CASES, ids=IDS)
def test_micro_batches_have_the_gradient_of_the_whole_batch(name: str, variant: dict[str, Any]) -> None:
    """Single samples, or single groups for a loss that is coupled."""
    config, chunks = first_batch(name, **variant)
    whole = double_learner(config)
    size = config.rollout.group if whole.parts.objective.coupled else 1
    parts = double_learner(config.with_settings(micro_batch=size))
    assert_same_gradient(gradient_of(parts, chunks), gradient_of(whole, chunks))


@pytest.mark.parametrize(("name", "variant"), CASES, ids=IDS)
def test_the_cost_is_what_the_meter_counts(name: str, variant: dict[str, Any]) -> None:
    """Of the loss and its backward pass. Several updates, since random choices may change the cost."""
    config, chunks = first_batch(name, **variant)
    learner = double_learner(config)
    objective = learner.parts.objective
    learner.update(chunks)  # learnables have steps, and the tuned policy differs from the base model
    for update in range(4):
        learner.optimizer.clear()
        batch = batch_of(learner, chunks, update)
        with Meter() as meter:
            objective.loss(batch, learner.policies, learner.reward).value.backward()
        cost = objective.cost(batch)
        counted = (meter.cost.network_forwards, meter.cost.network_gradients)
        assert counted == (cost.network_forwards, cost.network_gradients)


@pytest.mark.parametrize("name", NAMES)
def test_a_promised_gradient_is_used_and_no_other_is_asked_for(name: str) -> None:
    """Without the promise the reward may be a black box: it sees no graph, where rollouts are made and in the loss."""
    config, promised = config_of(name), OBJECTIVES[name].needs_gradient
    reward = RecordedReward(differentiable=promised)
    chunks = chunks_of(config, reward)
    assert not any(call.with_graph for call in reward.calls), "rollouts are made without a graph"
    reward.calls.clear()
    learner = tiny_learner(config, reward=reward)
    gradient = gradient_of(learner, chunks)
    assert gradient.abs().max() > 0
    assert any(call.with_graph for call in reward.calls) == promised


@pytest.mark.parametrize("name", NAMES)
def test_a_black_box_is_refused_in_one_sentence_where_a_gradient_is_needed(name: str) -> None:
    config, pde = config_of(name), tiny_info().pde()
    check_parts(config, pde, RecordedReward(differentiable=True))
    if not OBJECTIVES[name].needs_gradient:
        check_parts(config, pde, RecordedReward())
        return
    with pytest.raises(
        ConfigError, match=f"--objective {name} differentiates the reward, but --reward physics has no gradient"
    ) as told:
        check_parts(config, pde, RecordedReward())
    assert "\n" not in str(told.value) and "policy-gradient" in str(told.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_resumed_training_equals_one_that_was_never_stopped_bit_for_bit(name: str, tmp_path: Path) -> None:
    """Weights, averages and everything that is published, after 2 of 4 updates in another process's objects."""
    config = config_of(name, scope="all", checkpoint_every=2)
    whole = tiny_tuning(config, start_run(tmp_path / "whole", config))
    whole.fit()
    run = start_run(tmp_path / "parts", config)
    tiny_tuning(config, run).fit(lambda record: run.stop_file.touch() if record.update == 1 else None)
    run.stop_file.unlink()
    resumed = tiny_tuning(config, run)
    assert resumed.update == 2
    resumed.fit()
    ours, theirs = resumed.learner, whole.learner
    pairs = [(ours.weights(), theirs.weights()), (ours.ema.tensors, theirs.ema.tensors), (ours.published(), theirs.published())]
    for mine, expected in pairs:
        assert mine.keys() == expected.keys()
        assert all(torch.equal(mine[key], expected[key]) for key in expected)
    assert any(not torch.equal(tensor, theirs.policies.start[key]) for key, tensor in theirs.weights().items())


def test_unknown_and_taken_names() -> None:
    with pytest.raises(
        ValueError, match=r"--objective: unknown objective 'x'; known: adjoint, alignprop, .*draft-lv, .*pathwise, "
    ):
        OBJECTIVES.find("x")
    with pytest.raises(ValueError, match="'pathwise' of .*Mine is taken by pirf_ray.learning.objectives.pathwise.Pathwise"):
        register("pathwise")(type("Mine", (), {}))


OWN = """
from pirf_ray.learning.losses import Loss
from pirf_ray.learning.objectives import register
from pirf_ray.learning.objectives.pathwise import Pathwise

@register("halved")
class Halved(Pathwise):
    "Half of the pathwise loss."
    def loss(self, batch, policies, reward):
        made = super().loss(batch, policies, reward)
        return Loss(value=0.5 * made.value, metrics=made.metrics, samples=made.samples)
"""


def test_a_users_own_objective_is_named_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restored(OBJECTIVES, monkeypatch)
    (tmp_path / "own_objective.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PIRF_RAY_PDES", "")
    gradients = []
    for name in ("own_objective:halved", "pathwise"):
        config = config_of("pathwise", objective=name, clip_norm=1e9)
        assert config.objective == name and config.maker_name == "prefixes"
        gradients.append(gradient_of(tiny_learner(config), tiny_source(config).batch(0)))
    torch.testing.assert_close(gradients[0], 0.5 * gradients[1], rtol=1e-5, atol=1e-7 * gradients[1].abs().max().item())
