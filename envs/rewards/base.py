"""The reward seam: fields in physical units -> one reward per sample, with its breakdown."""

from dataclasses import dataclass
from typing import Protocol

import torch


@dataclass(frozen=True, kw_only=True)
class RewardOutput:
    """Reward (b,) and the violation (b,) of each term, unweighted and unclipped."""

    reward: torch.Tensor
    violations: dict[str, torch.Tensor]


class Reward(Protocol):
    """A function of finished samples. ``differentiable`` and ``per_sample`` say what an objective may do with it."""

    differentiable: bool
    per_sample: bool

    def __call__(self, fields: torch.Tensor) -> RewardOutput:
        """Return the rewards (b,) of fields (b, c, h, w), physical units."""
        ...
