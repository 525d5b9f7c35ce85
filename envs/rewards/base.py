"""The reward seam: functions of fields in physical units that return a reward per sample and its parts."""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, kw_only=True)
class RewardOutput:
    """Rewards of a batch of samples and the violations behind them."""

    reward: torch.Tensor
    """Reward (b,) of each sample."""
    violations: dict[str, torch.Tensor]
    """Violation (b,) of each term by name, unweighted and unclipped."""


class Reward(Protocol):
    """A reward function of finished samples."""

    differentiable: bool
    """Whether an objective may ask for its gradient."""
    per_sample: bool
    """Whether the reward of a sample does not depend on the other samples of its batch."""

    def __call__(self, fields: torch.Tensor) -> RewardOutput:
        """Return the rewards (b,) of fields (b, c, h, w) in physical units."""
        ...
