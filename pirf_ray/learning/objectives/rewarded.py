"""What the objectives share that differentiate the reward of samples made from prefixes."""

from collections.abc import Sequence

import torch

from envs.rewards.base import Reward
from pirf_ray.learning.losses import Batch, Context, Loss
from pirf_ray.learning.rollouts.records import Prefix


def prefix_of(batch: Batch) -> Prefix:
    """Return the batch's prefixes. TypeError for another kind of rollouts."""
    if not isinstance(batch.rollouts, Prefix):
        raise TypeError(f"this objective needs prefixes, got {type(batch.rollouts).__name__}")
    return batch.rollouts


def reward_loss(context: Context, batch: Batch, reward: Reward, samples: Sequence[torch.Tensor]) -> Loss:
    """Return minus the mean reward of samples x_0 (b, c, h, w) on the graph, one or more per prefix."""
    outs = [context.reward(reward, x, batch.rollouts.condition) for x in samples]
    mean = torch.stack([out.reward for out in outs]).mean(0)
    names = outs[0].violations
    return Loss(
        value=-mean.mean(),
        metrics={"reward": mean.detach()},
        violations={name: torch.stack([out.violations[name] for out in outs]).mean(0).detach() for name in names},
        samples=samples,
    )
