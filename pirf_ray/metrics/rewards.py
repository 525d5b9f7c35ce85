"""The mean reward of a set, as a metric."""

import math

import torch

from envs.pdes import PDE
from envs.rewards import Reward
from pirf_ray.metrics.physics import BATCH


class MeanReward:
    """Mean reward of a set. A sample that is not finite, or whose reward is nan, counts as minus infinity."""

    best = math.inf

    def __init__(self, reward: Reward) -> None:
        """Set the reward. A reward of scope ``set`` sees the whole set as one set."""
        self.reward = reward

    @torch.no_grad()
    def __call__(self, fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> float:
        """Return the mean reward of fields (n, c, h, w), physical units. The real fields have no part in it."""
        column = torch.full((len(fields),), -math.inf, dtype=torch.float64)
        finite = fields.isfinite().flatten(1).all(1)
        usable = fields[finite]
        batches = [usable] if self.reward.scope == "set" else torch.split(usable, BATCH)
        if len(usable):
            column[finite] = torch.cat([self.reward(batch).reward.cpu().double() for batch in batches])
        return torch.where(column.isnan(), -math.inf, column).mean().item()
