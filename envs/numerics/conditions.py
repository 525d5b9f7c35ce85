"""Conditions: what a reward or a network knows beside the field, such as observations, PDE parameters or reward weights."""

from collections.abc import Mapping, Sequence

import torch

Condition = Mapping[str, torch.Tensor]
"""Named tensors (b, ...), one row per sample."""


def select(condition: Condition | None, rows: slice | torch.Tensor) -> Condition | None:
    """Return the condition of some of the samples."""
    return None if condition is None else {name: tensor[rows] for name, tensor in condition.items()}


def join(conditions: Sequence[Condition | None]) -> Condition | None:
    """Return the conditions of several batches as one. ValueError if their names differ."""
    given = [condition for condition in conditions if condition is not None]
    if not given:
        return None
    if len(given) < len(conditions) or any(condition.keys() != given[0].keys() for condition in given):
        names = " | ".join(", ".join(sorted(condition)) if condition else "none" for condition in conditions)
        raise ValueError(f"batches with different conditions cannot be joined: {names}")
    return {name: torch.cat([condition[name] for condition in given]) for name in given[0]}


def to(condition: Condition | None, like: torch.Tensor) -> Condition | None:
    """Return the condition with the device of ``like``, floating-point tensors with its type too."""
    if condition is None:
        return None
    return {name: t.to(like) if t.is_floating_point() else t.to(like.device) for name, t in condition.items()}
