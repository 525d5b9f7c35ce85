"""The reward 0, for episodes whose fields nobody rewards."""

import torch

from envs.numerics.conditions import Condition
from envs.rewards.base import RewardOutput, Scope


class NoReward:
    """The reward 0 of each field. No residual is computed."""

    differentiable = True
    """The reward has the gradient 0."""
    scope: Scope = "sample"
    """The reward of a sample does not depend on its batch."""

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        """Return the reward 0 (b,) of fields (b, c, h, w)."""
        return RewardOutput(reward=fields.new_zeros(len(fields)))
