"""The source in this process: the weights that make each rollout, and how long rollouts are kept."""

import pytest
import torch

from pirf_ray.learning.rollouts.records import Prefix
from pirf_ray.learning.rollouts.sources import LocalSource
from tiny_models import FRESH, tiny_config, tiny_denoiser, tiny_source, tiny_worker

REUSED = {"scope": "all", **FRESH, "reuse": 2, "staleness": 1}


def weights(version: int) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in tiny_denoiser(seed=version).network.named_parameters()}


def run(source: LocalSource, updates: range) -> dict[int, list[Prefix]]:
    """Return the prefixes of each update. New weights are published after each update."""
    batches = {}
    source.publish(updates.start, weights(updates.start))
    for update in updates:
        batches[update] = source.batch(update)
        source.publish(update + 1, weights(update + 1))
    return batches


def test_each_prefix_is_made_by_the_weights_that_the_plan_says() -> None:
    config = tiny_config(**REUSED)
    batches = run(tiny_source(config), range(5))
    assert [[p.policy_version for p in batches[u]] for u in range(5)] == [[0, 0], [0, 0], [2, 2], [2, 2], [4, 4]]
    assert [[p.sample_ids for p in batches[u]] for u in (0, 1, 2)] == [[(0, 1), (2, 3)], [(0, 1), (2, 3)], [(4, 5), (6, 7)]]
    assert all(torch.equal(a.x, b.x) for a, b in zip(batches[2], batches[3], strict=True))
    alone = tiny_source(config)
    alone.worker.load(weights(2))
    assert torch.equal(alone.worker.make(2, 2).x, batches[2][0].x)


def test_the_tail_is_made_by_the_base_model_whatever_is_published() -> None:
    config = tiny_config(**FRESH)
    batches = run(tiny_source(config), range(3))
    assert {p.policy_version for chunks in batches.values() for p in chunks} == {0}
    untouched = tiny_source(config)
    assert torch.equal(untouched.worker.make(5, 0).x, batches[2][1].x)


def test_a_resumed_source_has_fresher_weights_than_the_plan_asks_for_and_no_others() -> None:
    """A run resumes at update 3, within the reuse of batch 1. The weights of version 2 are gone; version 3 is within the bound."""
    batches = run(tiny_source(tiny_config(**REUSED)), range(3, 5))
    assert [p.policy_version for p in batches[3]] == [3, 3]
    assert [p.policy_version for p in batches[4]] == [4, 4]


def test_old_weights_and_retired_prefixes_are_dropped() -> None:
    source = tiny_source(tiny_config(**REUSED))
    run(source, range(6))
    assert sorted(source._weights) == [5, 6]
    assert sorted(source._made) == [4, 5]


def test_each_published_tensor_goes_where_it_belongs() -> None:
    """Weights to the tuned policy, a moved reference to the base policy, learnables to a maker that takes them."""
    worker, taken = tiny_worker(tiny_config(**FRESH)), {}
    worker.maker.load_learnables = taken.update
    sent = {**weights(1), **{f"reference/{name}": tensor for name, tensor in weights(2).items()}, "learnable/s/w": torch.ones(2)}
    worker.load(sent)
    for policy, version in ((worker.policies.tuned, 1), (worker.policies.base, 2)):
        own = policy.tuned.tensors()
        assert all(torch.equal(own[name], tensor) for name, tensor in weights(version).items())
    assert taken.keys() == {"s/w"} and torch.equal(taken["s/w"], torch.ones(2))
    own = worker.policies.tuned.base.tensors()
    assert all(torch.equal(own[name], tensor) for name, tensor in weights(0).items())


def test_weights_that_a_policy_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="the network has no tensor 'adapter.weight'"):
        tiny_worker(tiny_config(**FRESH)).load({"adapter.weight": torch.zeros(1)})
