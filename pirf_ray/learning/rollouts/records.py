"""The kinds of rollouts: prefixes, trajectories and samples. All have one header and travel as numpy arrays.

A field whose samples are not on its first axis names the axis in its metadata. So selecting samples and joining batches are
written once for all kinds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import torch

from envs.denoising import State
from envs.numerics.conditions import Condition

R = TypeVar("R", bound="Rollouts")
SECOND = {"axis": 1}


@dataclass(frozen=True, kw_only=True)
class Rollouts:
    """Header of all rollouts of b samples, float32, model units."""

    kind: ClassVar[str] = ""

    sample_ids: tuple[int, ...]
    """Ids (b,) of the samples, which decide their noise."""
    groups: tuple[int, ...] = ()
    """Group (b,) of each sample: siblings that are compared with each other. Empty: no groups."""
    policy_version: int = 0
    """Version of the weights that made the rollouts."""
    source: Literal["policy", "data"] = field(default="policy", metadata={"shared": True})
    """Whether a policy or a solver made the fields."""
    condition: Condition | None = None
    """What rewards and networks know beside each sample (b, ...)."""

    def __len__(self) -> int:
        return len(self.sample_ids)

    def __getstate__(self) -> dict[str, Any]:
        """Return the fields as numpy arrays, which Ray sends without a copy."""
        return {name: _mapped(value, lambda t: t.cpu().numpy(), torch.Tensor) for name, value in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take in the fields. Arrays from Ray are read-only, so the tensors are copies."""
        for name, value in state.items():
            object.__setattr__(self, name, _mapped(value, lambda a: torch.from_numpy(a.copy()), np.ndarray))

    def select(self, rows: slice) -> Self:
        """Return the rollouts of some of the samples."""
        changes: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if _per_sample(f.metadata, value):
                axis = f.metadata.get("axis", 0)
                changes[f.name] = value[rows] if isinstance(value, tuple) else _mapped(value, _picked(rows, axis), torch.Tensor)
        return replace(self, **changes)

    def to(self, device: torch.device | str) -> Self:
        """Return the rollouts on a device."""
        moved = {f.name: _mapped(getattr(self, f.name), lambda t: t.to(device), torch.Tensor) for f in fields(self)}
        return replace(self, **moved)


@dataclass(frozen=True, kw_only=True)
class Prefix(Rollouts):
    """State before the last K steps. The learner needs nothing else to replay these steps."""

    kind: ClassVar[str] = "prefix"

    x: torch.Tensor
    """State (b, c, h, w)."""
    step: int = field(metadata={"shared": True})
    """Step that starts from the state, N - K."""
    previous: torch.Tensor | None = None
    """Denoised prediction (b, c, h, w) of the step before, which 2M needs."""
    base_output: torch.Tensor | None = None
    """Samples x_0 (b, c, h, w) of the base model from the same state, for the output anchor."""

    @property
    def state(self) -> State:
        """Return the whole state of the process."""
        return State(x=self.x, step=self.step, previous=self.previous)


@dataclass(frozen=True, kw_only=True)
class Trajectory(Rollouts):
    """Transitions of b trees of one shape, m nodes each, and the rewards of their l leaves. A chain is a tree with one leaf.

    Node j > 0 is the state after the transition from its parent. The arrays of means and densities belong to this transition.
    """

    kind: ClassVar[str] = "trajectory"

    x: torch.Tensor = field(metadata=SECOND)
    """States (m, b, c, h, w)."""
    steps: tuple[int, ...] = field(metadata={"shared": True})
    """Step (m,) of the sampler that starts from each node; N at a leaf."""
    parents: tuple[int, ...] = field(metadata={"shared": True})
    """Parent (m,) of each node; -1 at the root. A parent stands before its children."""
    leaves: tuple[int, ...] = field(metadata={"shared": True})
    """Nodes (l,) at sigma = 0."""
    mean: torch.Tensor = field(metadata=SECOND)
    """Mean (m, b, c, h, w) of the behaviour policy's transition; the state itself where the step is deterministic."""
    log_density: torch.Tensor = field(metadata=SECOND)
    """Log density (m, b) of the transition under the behaviour policy; 0 where the step is deterministic."""
    reward: torch.Tensor = field(metadata=SECOND)
    """Reward (l, b) of each leaf."""
    parts: dict[str, torch.Tensor] = field(default_factory=dict, metadata=SECOND)
    """Parts and violations (l, b) of the rewards, by name."""
    base_mean: torch.Tensor | None = field(default=None, metadata=SECOND)
    """Mean (m, b, c, h, w) of the reference's transition from the same parent, if the maker was asked for it."""
    base_log_density: torch.Tensor | None = field(default=None, metadata=SECOND)
    """Log density (m, b) of the transition under the reference."""

    def children(self, node: int) -> list[int]:
        """Return the nodes whose parent is ``node``."""
        return [j for j, parent in enumerate(self.parents) if parent == node]

    def path(self, node: int) -> list[int]:
        """Return the nodes from the root to ``node``."""
        found = [node]
        while self.parents[found[0]] >= 0:
            found.insert(0, self.parents[found[0]])
        return found


@dataclass(frozen=True, kw_only=True)
class Sample(Rollouts):
    """Finished fields with their rewards."""

    kind: ClassVar[str] = "sample"

    x: torch.Tensor
    """Finished samples x_0 (b, c, h, w)."""
    reward: torch.Tensor
    """Reward (b,)."""
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    """Parts and violations (b,) of the reward, by name."""


def join(parts: Sequence[R], device: torch.device | str = "cpu") -> R:
    """Return several rollouts as one on a device. Its version is the oldest version among them.

    A tensor that some of them left out is left out. ValueError if they differ in kind, in conditions or in what all samples share,
    such as the step of a prefix.
    """
    first = parts[0]
    kinds = sorted({part.kind for part in parts})
    if len(kinds) > 1:
        raise ValueError(f"rollouts of different kinds cannot be joined: {', '.join(kinds)}")
    changes: dict[str, Any] = {}
    for f in fields(first) if len(parts) > 1 else ():
        values = [getattr(part, f.name) for part in parts]
        if f.name == "policy_version":
            changes[f.name] = min(values)
        elif f.metadata.get("shared") or any(isinstance(value, dict) != isinstance(values[0], dict) for value in values):
            _require_equal(f.name, values)
        else:
            changes[f.name] = _joined(values, f.metadata.get("axis", 0))
    return replace(first, **changes).to(device)


def _require_equal(name: str, values: list[Any]) -> None:
    texts = [", ".join(value) if isinstance(value, dict) else str(value) for value in values]
    if len(set(texts)) > 1:
        raise ValueError(f"rollouts with different {name} cannot be joined: {' | '.join(sorted(set(texts)))}")


def _per_sample(metadata: Any, value: Any) -> bool:
    return not metadata.get("shared") and isinstance(value, torch.Tensor | tuple | dict)


def _picked(rows: slice, axis: int) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor[rows] if axis == 0 else tensor[:, rows]


def _mapped(value: Any, function: Callable[[Any], Any], kind: type) -> Any:
    """Return the value with ``function`` applied to it or to the values of a dictionary, if they are of the kind."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {name: _mapped(item, function, kind) for name, item in value.items()}
    return value


def _joined(values: list[Any], axis: int) -> Any:
    """Return tuples, tensors or dictionaries of tensors as one; None if a value is None."""
    if any(value is None for value in values):
        return None
    if isinstance(values[0], tuple):
        return tuple(item for value in values for item in value)
    if isinstance(values[0], dict):
        if any(value.keys() != values[0].keys() for value in values):
            raise ValueError("rollouts with different parts or conditions cannot be joined")
        return {name: torch.cat([value[name] for value in values], dim=axis) for name in values[0]}
    return torch.cat(values, dim=axis)
