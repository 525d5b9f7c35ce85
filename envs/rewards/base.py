"""The reward seam: functions of fields in physical units that return a reward per sample and its parts.

>>> import torch
>>> class Amplitude:
...     differentiable, scope = True, "sample"
...     def __call__(self, fields, condition=None):
...         return RewardOutput(reward=-(fields.square().flatten(1).mean(1) - 1).abs())
>>> Amplitude()(torch.ones(2, 1, 8, 8)).reward
tensor([-0., -0.])
"""

from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from envs.common.parts import PartRegistry
from envs.numerics.conditions import Condition

Scope = Literal["sample", "set"]


@dataclass(frozen=True, kw_only=True)
class RewardOutput:
    """Rewards of a batch of samples and the numbers behind them."""

    reward: torch.Tensor
    """Reward (b,) of each sample."""
    parts: dict[str, torch.Tensor] = field(default_factory=dict)
    """Further numbers (b,) by name, such as the rewards that were added up. They are logged."""
    violations: dict[str, torch.Tensor] = field(default_factory=dict)
    """Violation (b,) of each physical term by name, unweighted and unclipped: 0 if the physics holds."""


class Reward(Protocol):
    """A reward function of finished samples."""

    differentiable: bool
    """Whether an objective may ask for its gradient."""
    scope: Scope
    """sample: the reward of a sample depends on this sample only. set: it depends on all samples of the call."""

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        """Return the rewards (b,) of fields (b, c, h, w) in physical units."""
        ...


REWARDS: PartRegistry[Reward] = PartRegistry("reward", Reward)
"""Rewards by name. A registered class is made with (settings, pde)."""
register = REWARDS.register
