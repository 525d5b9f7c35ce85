"""The records of rollouts: selecting, joining, moving and sending each kind."""

import pickle
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from pirf_ray.learning.rollouts.records import Prefix, Rollouts, Sample, Trajectory, join

FIELD = (1, 2, 2)
STEPS, PARENTS, LEAVES = (0, 1, 2, 2), (-1, 0, 1, 1), (2, 3)
"""A tree: root, its child, and two leaves below this child."""


def header(ids: tuple[int, ...], **changes: Any) -> dict[str, Any]:
    condition = {"y": torch.tensor([[10.0 * i, 1.0] for i in ids]), "mask": torch.tensor([i % 2 == 0 for i in ids])}
    return {"sample_ids": ids, "groups": tuple(i // 2 for i in ids), "policy_version": 3, "condition": condition, **changes}


def numbered(ids: tuple[int, ...], *shape: int, before: int | None = None) -> torch.Tensor:
    """Return a tensor (b, *shape), or (before, b, *shape), whose entries are those of sample i from 100 i on."""
    rows = torch.stack([100.0 * i + torch.arange(float(np.prod(shape) or 1)).reshape(shape) for i in ids])
    return rows if before is None else torch.stack([rows + 1000 * k for k in range(before)])


def prefix(ids: tuple[int, ...], **changes: Any) -> Prefix:
    own = {"x": numbered(ids, *FIELD), "step": 3, "previous": 2 * numbered(ids, *FIELD), "base_output": -numbered(ids, *FIELD)}
    return Prefix(**header(ids, **{**own, **changes}))


def trajectory(ids: tuple[int, ...], **changes: Any) -> Trajectory:
    nodes, leaves = len(STEPS), len(LEAVES)
    own = {
        "x": numbered(ids, *FIELD, before=nodes),
        "steps": STEPS,
        "parents": PARENTS,
        "leaves": LEAVES,
        "mean": -numbered(ids, *FIELD, before=nodes),
        "log_density": numbered(ids, before=nodes),
        "reward": numbered(ids, before=leaves),
        "parts": {"a": 3 * numbered(ids, before=leaves)},
        "base_mean": 2 * numbered(ids, *FIELD, before=nodes),
        "base_log_density": 2 * numbered(ids, before=nodes),
    }
    return Trajectory(**header(ids, **{**own, **changes}))


def sample(ids: tuple[int, ...], **changes: Any) -> Sample:
    own = {"x": numbered(ids, *FIELD), "reward": numbered(ids), "parts": {"a": 3 * numbered(ids)}}
    return Sample(**header(ids, **{**own, **changes}))


KINDS = (prefix, trajectory, sample)


def assert_same(ours: Rollouts, theirs: Rollouts) -> None:
    """Every field is equal, in its value and its type."""
    assert type(ours) is type(theirs)
    for f in fields(ours):
        a, b = getattr(ours, f.name), getattr(theirs, f.name)
        assert type(a) is type(b), f.name
        pairs = [(a[k], b[k]) for k in a] if isinstance(a, dict) else [(a, b)]
        assert not isinstance(a, dict) or a.keys() == b.keys()
        for x, y in pairs:
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, f.name


@pytest.mark.parametrize("make", KINDS)
def test_some_of_the_samples_are_the_rollouts_of_these_samples(make: Any) -> None:
    whole = make((4, 5, 6, 7))
    assert len(whole) == 4
    for rows in (slice(0, 2), slice(1, 3), slice(3, 4), slice(None)):
        assert_same(whole.select(rows), make((4, 5, 6, 7)[rows]))
    with pytest.raises(AttributeError):
        whole.policy_version = 4  # type: ignore[misc]


@pytest.mark.parametrize("make", KINDS)
def test_joined_rollouts_are_those_of_all_samples(make: Any) -> None:
    parts = [make((4, 5)), make((8, 9)), make((1,))]
    assert_same(join(parts), make((4, 5, 8, 9, 1)))
    assert_same(join(parts[:1]), parts[0])
    assert_same(join([whole.select(slice(i, i + 1)) for whole in [make((2, 3, 4))] for i in range(3)]), make((2, 3, 4)))


@pytest.mark.parametrize("make", KINDS)
def test_the_version_of_joined_rollouts_is_the_oldest(make: Any) -> None:
    assert join([make((0,), policy_version=7), make((1,), policy_version=5)]).policy_version == 5


@pytest.mark.parametrize("make", KINDS)
def test_rollouts_arrive_as_tensors_of_their_own(make: Any) -> None:
    """They travel as numpy arrays. Arrays from Ray are read-only, and a tensor on their memory could not be written."""
    sent = make((4, 5))
    state = sent.__getstate__()
    leaves = [v for value in state.values() for v in (value.values() if isinstance(value, dict) else [value])]
    assert any(isinstance(leaf, np.ndarray) for leaf in leaves) and not any(isinstance(leaf, torch.Tensor) for leaf in leaves)
    arrived = pickle.loads(pickle.dumps(sent))
    assert_same(arrived, sent)
    arrived.x.zero_()
    assert_same(sent, make((4, 5)))


@pytest.mark.parametrize("make", KINDS)
def test_a_frozen_array_makes_a_tensor_that_can_be_written(make: Any) -> None:
    sent = make((4, 5))
    state = sent.__getstate__()
    state["x"].setflags(write=False)
    arrived = object.__new__(type(sent))
    arrived.__setstate__(state)
    arrived.x.zero_()
    assert sent.x.abs().sum() > 0


@pytest.mark.parametrize("make", KINDS)
def test_groups_and_conditions_may_be_missing(make: Any) -> None:
    bare = [make((i, i + 1), groups=(), condition=None) for i in (0, 2)]
    both = join(bare)
    assert both.groups == () and both.condition is None
    assert_same(both.select(slice(0, 2)), bare[0])
    assert_same(pickle.loads(pickle.dumps(both)), both)


def test_a_tensor_that_some_left_out_is_left_out() -> None:
    """In both orders."""
    whole, without = prefix((0, 1)), prefix((2, 3), base_output=None)
    for parts in ([whole, without], [without, whole]):
        both = join(parts)
        assert both.base_output is None and both.previous is not None and len(both.x) == 4
    bare = replace(trajectory((2, 3)), base_mean=None, base_log_density=None)
    assert join([trajectory((0, 1)), bare]).base_mean is None


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (prefix((0,)), prefix((1,), step=4), r"different step cannot be joined: 3 \| 4"),
        (sample((0,)), sample((1,), source="data"), r"different source cannot be joined: data \| policy"),
        (trajectory((0,)), trajectory((1,), parents=(-1, 0, 1, 0)), "different parents cannot be joined"),
        (sample((0,)), sample((1,), condition=None), r"different condition cannot be joined: None \| y, mask"),
        (sample((0,), condition=None), sample((1,)), "different condition cannot be joined"),
        (sample((0,)), sample((1,), condition={"z": torch.zeros(1)}), "different parts or conditions"),
        (sample((0,)), sample((1,), parts={}), "different parts or conditions"),
        (prefix((0,)), sample((1,)), "different kinds cannot be joined: prefix, sample"),
    ],
)
def test_what_does_not_belong_together_is_not_joined(first: Rollouts, second: Rollouts, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        join([first, second])


def test_a_moved_rollout_has_every_tensor_on_the_device() -> None:
    moved = trajectory((0, 1)).to("meta")
    assert {t.device.type for t in (moved.x, moved.reward, moved.base_mean, moved.parts["a"], moved.condition["y"])} == {"meta"}
    assert moved.steps == STEPS


def test_a_prefix_is_the_whole_state() -> None:
    given = prefix((0, 1))
    assert given.state.step == 3 and given.state.slope is None
    assert torch.equal(given.state.x, given.x) and torch.equal(given.state.previous, given.previous)


def test_the_nodes_of_a_tree_are_found_from_both_ends() -> None:
    tree = trajectory((0, 1))
    assert [tree.children(node) for node in range(4)] == [[1], [2, 3], [], []]
    assert tree.path(3) == [0, 1, 3] and tree.path(0) == [0]
