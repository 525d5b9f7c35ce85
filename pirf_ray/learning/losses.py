"""What an objective gives to the learner: a loss, and what regularizers and records need beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from envs.denoising import DenoisingProcess
from envs.numerics.conditions import Condition
from envs.pdes import PDE
from envs.rewards.base import Reward, RewardOutput
from pirf_ray.learning.rollouts.records import Rollouts


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Rollouts of one micro-batch, or of a rank's share of the batch."""

    rollouts: Rollouts
    """Rollouts of b samples."""
    key: tuple[int, int]
    """Seed and update. Random choices are functions of the key and the sample ids, so they are the same on every rank."""
    advantages: torch.Tensor | None = None
    """Advantages that the credit filled in: (b,) of samples, (m, b) of the transitions of trajectories."""

    def __len__(self) -> int:
        return len(self.rollouts)

    @property
    def stream(self) -> str:
        """Random stream of the update."""
        return f"update {self.key[1]}"

    def select(self, rows: slice) -> "Batch":
        """Return the batch of some of the samples."""
        advantages = self.advantages
        if advantages is not None:
            advantages = advantages[rows] if advantages.ndim == 1 else advantages[:, rows]
        return replace(self, rollouts=self.rollouts.select(rows), advantages=advantages)


@dataclass(frozen=True, kw_only=True, eq=False)
class Loss:
    """Loss of a micro-batch of b samples."""

    value: torch.Tensor
    """Scalar to minimize: a mean over the samples, on the autograd graph."""
    metrics: dict[str, torch.Tensor] = field(default_factory=dict)
    """Numbers (b,) by name, which are recorded."""
    violations: dict[str, torch.Tensor] = field(default_factory=dict)
    """Violations (b,) of physical terms by name, which are recorded beside their floors."""
    samples: Sequence[torch.Tensor] = ()
    """Finished samples (b, c, h, w) that the objective made, on the graph, model units, for regularizers."""
    kl: torch.Tensor | None = None
    """KL divergence (b,) of the tuned chain to the reference's, summed over the trained steps, on the graph."""

    def plus(self, other: "Loss") -> "Loss":
        """Return the loss with a penalty added and its metrics beside."""
        return replace(self, value=self.value + other.value, metrics={**self.metrics, **other.metrics})


@dataclass(frozen=True, kw_only=True, eq=False)
class Context:
    """What every objective, credit and regularizer knows of the training."""

    process: DenoisingProcess
    """Denoising process of the training."""
    pde: PDE
    """PDE of the fields."""
    truncation: int
    """K, the number of last steps that carry gradient."""

    def reward(self, reward: Reward, x: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        """Return the rewards (b,) of samples x (b, c, h, w), model units."""
        return reward(self.pde.normalizer.to_physical(x), condition)

    def wide(self, values: torch.Tensor) -> torch.Tensor:
        """Return values (b,) as (b, 1, 1, 1)."""
        return values[:, None, None, None]
