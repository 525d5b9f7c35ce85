"""Conditions: selected, joined and moved like the samples that they belong to."""

import pytest
import torch

from envs.numerics import conditions

CONDITION = {"values": torch.arange(8.0).reshape(4, 2), "index": torch.arange(4)}


@pytest.mark.parametrize("rows", [slice(1, 3), torch.tensor([1, 2]), torch.tensor([False, True, True, False])])
def test_the_condition_of_some_samples(rows: slice | torch.Tensor) -> None:
    some = conditions.select(CONDITION, rows)
    assert some is not None and some["values"].tolist() == [[2, 3], [4, 5]] and some["index"].tolist() == [1, 2]
    assert conditions.select(None, rows) is None


def test_batches_are_joined_in_their_order() -> None:
    parts = [conditions.select(CONDITION, slice(2, 4)), conditions.select(CONDITION, slice(0, 2))]
    joined = conditions.join(parts)
    assert joined is not None and joined["index"].tolist() == [2, 3, 0, 1] and joined["values"].shape == (4, 2)
    assert conditions.join([None, None]) is None and conditions.join([]) is None


@pytest.mark.parametrize("other", [None, {}, {"values": torch.zeros(4, 2)}])
def test_batches_with_other_conditions_are_not_joined(other: conditions.Condition | None) -> None:
    with pytest.raises(ValueError, match=r"different conditions cannot be joined: .*index, values"):
        conditions.join([CONDITION, other])


def test_only_floating_point_tensors_change_their_type() -> None:
    moved = conditions.to(CONDITION, torch.zeros(1, dtype=torch.float64))
    assert moved is not None and moved["values"].dtype == torch.float64 and moved["index"].dtype == torch.int64
    assert conditions.to(None, torch.zeros(1)) is None
