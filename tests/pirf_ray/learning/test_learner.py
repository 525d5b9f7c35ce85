"""The learner: its metrics, its ranks, and what it carries beside the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from lagging import register_lagging
from pirf_ray.learning.communicator import Communicator
from pirf_ray.learning.learner import Learner
from pirf_ray.learning.objectives import OBJECTIVES
from pirf_ray.learning.objectives.pathwise import Pathwise
from pirf_ray.learning.regularizers import REGULARIZERS
from pirf_ray.learning.rollouts.records import Rollouts
from pirf_ray.learning.rollouts.sources import LEARNABLE, REFERENCE
from pirf_ray.training.settings import TrainConfig
from ranks import on_ranks
from recorded_reward import RecordedReward
from registries import restored
from tiny_models import start_run, tiny_config, tiny_learner, tiny_source, tiny_tuning

CHAIN: dict[str, Any] = {
    "objective": "policy-gradient",
    "solver": "stochastic",
    "regularizers": ("l2",),
    "l2": 0.01,
    "group": 2,
    "strategy": "fresh",
}


@pytest.fixture(autouse=True)
def _own_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    restored(OBJECTIVES, monkeypatch)
    restored(REGULARIZERS, monkeypatch)
    register_lagging()


def lagging(**settings: Any) -> TrainConfig:
    own = {"objective": "lagging", "regularizers": ("l2", "moving"), "strategy": "fresh", "scope": "all", "updates": 4}
    return tiny_config(**{**own, "guard": "off", "checkpoint_every": 2, **settings})


def flat(learner: Learner) -> torch.Tensor:
    return torch.cat([tensor.flatten() for tensor in learner.weights().values()])


def gradient_of(config: TrainConfig, chunks: list[Rollouts], communicator: Communicator | None = None) -> torch.Tensor:
    """Return the flat gradient of the whole batch, clipped, before Adam, which blows rounding up."""
    learner = tiny_learner(config, communicator)
    learner.update(chunks)
    return torch.cat([p.grad.flatten() for p in learner.optimizer.parameters])


CONFIGS = {
    "pathwise": {"strategy": "fresh"},
    "micro batches": {"strategy": "fresh", "micro_batch": 1},
    "groups": CHAIN,
    "learnable": {"objective": "lagging", "regularizers": ("l2", "moving"), "strategy": "fresh"},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_two_ranks_learn_as_one_with_the_whole_batch(name: str) -> None:
    """The sum of two shares differs from the whole by rounding: about 1e-6 of the largest entry in float32."""
    config = tiny_config(**CONFIGS[name])
    source = tiny_source(config)
    source.publish(0, tiny_learner(config).published())
    chunks = source.batch(0)
    whole = gradient_of(config, chunks)
    first, second = on_ranks(2, lambda c: gradient_of(config, chunks[c.rank : c.rank + 1], c))
    assert torch.equal(first, second) and whole.abs().max() > 0
    torch.testing.assert_close(first, whole, rtol=1e-3, atol=1e-5 * whole.abs().max().item())


def test_every_rank_has_the_metrics_of_the_whole_batch() -> None:
    config = lagging()
    chunks = tiny_source(config).worker
    made = [chunks.make(i, 0) for i in (0, 1)]
    whole = tiny_learner(config).update(made)
    first, second = on_ranks(2, lambda c: tiny_learner(config, c).update(made[c.rank : c.rank + 1]))
    assert first == second
    for name, value in whole.to_json().items():
        assert first.to_json()[name] == pytest.approx(value, rel=1e-4, abs=1e-7), name


def test_the_numbers_of_a_rewarded_rollout_are_recorded_by_their_kind() -> None:
    """Violations of the PDE beside their floors, other parts of the reward by name, the objective's own numbers."""
    config = tiny_config(**CHAIN)
    source = tiny_source(config)
    source.publish(0, tiny_learner(config).published())
    chunks = source.batch(0)
    learner = tiny_learner(config)
    metrics = learner.update(chunks)
    rewards = torch.cat([chunk.reward[0] for chunk in chunks])
    assert metrics.reward == pytest.approx(rewards.mean().item(), rel=1e-5)
    residual = metrics.terms["consistent"]
    violation = torch.cat([chunk.parts["consistent"][0] for chunk in chunks])
    assert residual.is_residual and residual.mean == pytest.approx(violation.mean().item(), rel=1e-5)
    assert residual.over_floor == pytest.approx(residual.mean / learner.floors["consistent"])
    assert {"kl", "ratio", "clipped"} <= metrics.named.keys()
    record = metrics.to_json()
    assert {"learner/ratio", "residual/consistent/mean", "residual/over_floor"} <= record.keys()


def test_the_parts_of_an_own_reward_are_recorded_by_name() -> None:
    config = tiny_config(**CHAIN)
    reward = RecordedReward()
    source = tiny_source(config, reward=reward)
    source.publish(0, tiny_learner(config).published())
    chunks = source.batch(0)
    metrics = tiny_learner(config, reward=reward).update(chunks)
    largest = torch.cat([chunk.parts["largest"][0] for chunk in chunks]).mean().item()
    assert metrics.parts == {"largest": pytest.approx(largest, rel=1e-5)} and metrics.terms == {}
    assert metrics.to_json()["reward/largest"] == metrics.parts["largest"]


def test_a_learnable_steps_before_the_loss_and_is_reported() -> None:
    config = lagging()
    learner, worker = tiny_learner(config), tiny_source(config).worker
    metrics = [learner.update([worker.make(i, 0), worker.make(i + 1, 0)]) for i in (0, 2)]
    baseline = learner.parts.objective.baseline
    assert baseline.value.item() != 0 and all("baseline_loss" in m.named for m in metrics)
    assert {"error", "distance"} <= metrics[0].named.keys()
    assert metrics[0].named["distance"] == 0 < metrics[1].named["distance"]


def test_the_old_policy_follows_and_is_published() -> None:
    """It makes the rollouts, so its tensors are published in place of the tuned policy's."""
    config = lagging()
    learner, worker = tiny_learner(config), tiny_source(config).worker
    start = {name: tensor.clone() for name, tensor in learner.weights().items()}
    learner.update([worker.make(0, 0), worker.make(1, 0)])
    published = learner.published()
    for name, tensor in learner.weights().items():
        torch.testing.assert_close(published[name], start[name].lerp(tensor, 0.5), rtol=1e-5, atol=1e-7)
    assert not torch.equal(published["dec.8x8_aux_conv.weight"], learner.weights()["dec.8x8_aux_conv.weight"])


def test_learnables_and_a_moved_reference_are_published() -> None:
    config = lagging()
    learner, worker = tiny_learner(config), tiny_source(config).worker
    kinds = []
    for _ in range(2):
        learner.update([worker.make(0, 0), worker.make(1, 0)])
        kinds.append({prefix for name in learner.published() for prefix in (LEARNABLE, REFERENCE) if name.startswith(prefix)})
    assert kinds == [{LEARNABLE}, {LEARNABLE, REFERENCE}]
    published = learner.published()
    assert torch.equal(published[f"{LEARNABLE}baseline/value"], learner.parts.objective.baseline.value)
    for name, tensor in learner.weights().items():
        assert torch.equal(published[f"{REFERENCE}{name}"], tensor)
    worker.load(published)
    assert torch.equal(worker.policies.base.tuned.tensors()["map_layer0.bias"], learner.weights()["map_layer0.bias"])


def test_what_is_beside_the_weights_resumes_to_the_bit(tmp_path: Path) -> None:
    """Weights, average, lagged policy, moved reference and learnable, after 2 of 4 updates, and what is published."""
    config = lagging()
    whole = tiny_tuning(config, start_run(tmp_path / "whole", config))
    whole.fit()
    run = start_run(tmp_path / "parts", config)
    first = tiny_tuning(config, run)
    first.fit(lambda record: run.stop_file.touch() if record.update == 1 else None)
    run.stop_file.unlink()
    second = tiny_tuning(config, run)
    assert (first.update, second.update, second.learner.policies.resets) == (2, 2, 1)
    for name, tensor in first.learner.published().items():
        assert torch.equal(second.learner.published()[name], tensor), name
    second.fit()
    ours, theirs = second.learner, whole.learner
    assert ours.published().keys() == theirs.published().keys()
    assert all(torch.equal(ours.published()[name], tensor) for name, tensor in theirs.published().items())
    assert torch.equal(flat(ours), flat(theirs))
    assert all(torch.equal(ours.ema.tensors[name], tensor) for name, tensor in theirs.ema.tensors.items())
    assert ours.policies.resets == theirs.policies.resets == 2


@pytest.mark.parametrize("behaviour", ["tuned", "average", "base", "old"])
def test_the_behaviour_policys_tensors_are_published(behaviour: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(OBJECTIVES["pathwise"], "behaviour", behaviour)
    config = tiny_config(strategy="fresh")
    learner = tiny_learner(config)
    learner.update(tiny_source(config).batch(0))
    published = learner.published()
    expected = {"tuned": learner.weights(), "average": learner.ema.tensors, "old": learner.policies.start, "base": {}}[behaviour]
    assert published.keys() == expected.keys()
    assert all(torch.equal(published[name], tensor) for name, tensor in expected.items())


class Nameless(Pathwise):
    """An objective on prefixes that does not name the reward."""

    def loss(self, *arguments: Any) -> Any:
        made = super().loss(*arguments)
        object.__setattr__(made, "metrics", {})
        return made


def test_an_objective_without_a_reward_in_its_numbers_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes carry no reward, so the objective must name the number ``reward``."""
    OBJECTIVES.register("nameless")(Nameless)
    config = tiny_config(objective="nameless")
    with pytest.raises(ValueError, match="the objective nameless must name the number 'reward'"):
        tiny_learner(config).update(tiny_source(config).batch(0))


def test_a_checkpoint_of_other_parameters_is_refused() -> None:
    plain, low_rank = tiny_learner(tiny_config()), tiny_learner(tiny_config(parameters="low-rank"))
    with pytest.raises(ValueError, match="other learning tensors than this run: other --parameters or another network"):
        plain.load(low_rank.weights(), low_rank.ema.tensors, low_rank.state())
