"""Group-relative advantages (GRPO: Shao et al. 2024, arXiv 2402.03300).

    A = (r - mean_g r) / (std_g r + eps),   or A = r - mean_g r

The mean and the standard deviation are those of the sample's group. Dividing by std_g r also divides the strength of a KL term
beside it: beta becomes beta std_g r. For the exact tilt leave the division out.
"""

from dataclasses import dataclass

import torch

from envs.common.parts import PartSettings
from pirf_ray.learning.credit.base import register
from pirf_ray.learning.losses import Batch, Context
from pirf_ray.learning.rollouts.records import Sample, Trajectory

EPSILON = 1e-6


@dataclass(frozen=True, kw_only=True)
class GroupSettings(PartSettings):
    """Settings of group-relative advantages."""

    normalize: bool = True
    """Whether advantages are divided by the group's standard deviation, as published."""


@register("group")
class GroupCredit:
    """Reward minus the group's mean, over the group's standard deviation. Every transition of a chain has the same."""

    Settings = GroupSettings
    min_group = 2

    def __init__(self, settings: GroupSettings, context: Context) -> None:
        self.settings = settings

    def advantages(self, batch: Batch) -> torch.Tensor:
        """Return (b,) for samples and (m, b) for trajectories. A tree's node has the mean advantage of its leaves."""
        rollouts = batch.rollouts
        groups = torch.tensor(rollouts.groups)
        if isinstance(rollouts, Sample):
            return relative(rollouts.reward, groups, normalize=self.settings.normalize)
        if not isinstance(rollouts, Trajectory):
            raise TypeError(f"group credit needs samples or trajectories, got {type(rollouts).__name__}")
        leaves = len(rollouts.leaves)
        flat = relative(rollouts.reward.flatten(), groups.repeat(leaves), normalize=self.settings.normalize)
        return spread(rollouts, flat.reshape(leaves, -1))


def relative(reward: torch.Tensor, groups: torch.Tensor, *, normalize: bool) -> torch.Tensor:
    """Return the rewards (n,) relative to their groups (n,)."""
    _, index = torch.unique(groups.to(reward.device), return_inverse=True)
    count = torch.bincount(index).to(reward)
    mean = torch.zeros_like(count).index_add(0, index, reward) / count
    centred = reward - mean[index]
    if not normalize:
        return centred
    variance = torch.zeros_like(count).index_add(0, index, centred.square()) / count
    return centred / (variance.sqrt()[index] + EPSILON)


def spread(trajectory: Trajectory, leaf_values: torch.Tensor) -> torch.Tensor:
    """Return values (m, b) of all nodes from those of the leaves (l, b): the mean over the leaves below a node."""
    nodes = len(trajectory.steps)
    total, count = leaf_values.new_zeros(nodes, leaf_values.shape[1]), [0] * nodes
    for leaf, value in zip(trajectory.leaves, leaf_values, strict=True):
        for node in trajectory.path(leaf):
            total[node] = total[node] + value
            count[node] += 1
    return total / leaf_values.new_tensor(count).clamp_min(1)[:, None]
