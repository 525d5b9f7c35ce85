"""A reward that remembers how it was called."""

from dataclasses import dataclass, field

import torch

from envs.numerics.conditions import Condition
from envs.rewards.base import RewardOutput, Scope


@dataclass
class Call:
    """What a reward was given."""

    fields: torch.Tensor
    """Fields (b, c, h, w), a copy."""
    condition: Condition | None
    with_graph: bool
    """Whether autograd recorded the call."""


@dataclass
class RecordedReward:
    """Minus the mean square of a field, with a part. A reward of scope ``set`` subtracts the mean over the call."""

    differentiable: bool = False
    scope: Scope = "sample"
    calls: list[Call] = field(default_factory=list)

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        """Return the rewards (b,) of fields (b, c, h, w)."""
        with_graph = torch.is_grad_enabled() and fields.requires_grad
        self.calls.append(Call(fields.detach().clone(), condition, with_graph))
        reward = -fields.square().flatten(1).mean(1)
        reward = reward - reward.mean() if self.scope == "set" else reward
        return RewardOutput(reward=reward, parts={"largest": fields.abs().flatten(1).amax(1)})

    @property
    def rows(self) -> list[int]:
        """Return the number of fields of each call."""
        return [len(call.fields) for call in self.calls]
