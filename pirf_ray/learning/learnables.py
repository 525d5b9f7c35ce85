"""The seam of what learns beside the policy: a surrogate reward, a value function, a discriminator.

>>> import torch
>>> class Mean(Learnable):
...     "Mean reward of all batches so far."
...     def __init__(self):
...         super().__init__()
...         self.value = torch.nn.Parameter(torch.zeros(()))
...     def loss(self, batch):
...         return (batch.rollouts.reward - self.value).square().mean()
"""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch

from pirf_ray.learning.communicator import Communicator
from pirf_ray.learning.losses import Batch
from pirf_ray.learning.optimization import GroupedAdam
from pirf_ray.learning.parameters.base import Group

CLIP_NORM = 10.0
"""Largest norm of a learnable's gradient."""


class Learnable(torch.nn.Module):
    """Module that learns from the same batches as the policy. The learner steps, saves, resumes and publishes it like weights.

    Its gradient is summed over the ranks. It steps before the objective's loss, so the loss sees its new state.
    """

    learning_rate: float = 1e-3
    """Learning rate of its own Adam."""
    steps: int = 1
    """Steps per update of the policy."""

    @abstractmethod
    def loss(self, batch: Batch) -> torch.Tensor:
        """Return the scalar loss of a rank's share of the batch, a mean over its samples."""

    def statistics(self, batch: Batch) -> torch.Tensor | None:
        """Return sums (k,) over a rank's share of the batch, which ``absorb`` gets as sums over all ranks. None: there are none."""
        return None

    def absorb(self, total: torch.Tensor) -> None:
        """Take in the statistics (k,) of the whole batch, before the steps of an update."""


class LearnableSteps:
    """Steps of all learnables, each with its own Adam. The gradients are summed over the ranks."""

    def __init__(self, learnables: Mapping[str, Learnable], device: torch.device) -> None:
        self.learnables = {name: learnable.to(device) for name, learnable in learnables.items()}
        self._optimizers = {
            name: GroupedAdam([Group(parameters=dict(learnable.named_parameters()))]) for name, learnable in learnables.items()
        }

    def step(self, batch: Batch, communicator: Communicator) -> dict[str, float]:
        """Step each learnable on this rank's share of the batch. Return the mean loss of each before its last step, by name.

        Statistics and steps that are not finite are left out.
        """
        losses = {}
        for name, learnable in self.learnables.items():
            optimizer = self._optimizers[name]
            sums = learnable.statistics(batch)
            if sums is not None and torch.isfinite(whole := communicator.sum(sums)).all():
                learnable.absorb(whole)
            for _ in range(learnable.steps):
                optimizer.clear()
                loss = learnable.loss(batch) / communicator.world
                loss.backward()  # type: ignore[no-untyped-call]
                total = communicator.sum(torch.cat([optimizer.flat_gradient(), loss.detach()[None]]))
                losses[f"{name}_loss"] = total[-1].item()
                if torch.isfinite(total).all():
                    optimizer.step(total[:-1], rate=learnable.learning_rate, clip_norm=CLIP_NORM)
            optimizer.clear()
        return losses

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return the tensors of all learnables by ``name/tensor``."""
        return {f"{n}/{k}": t for n, learnable in self.learnables.items() for k, t in learnable.state_dict().items()}

    def state(self) -> dict[str, Any]:
        """Return tensors and optimizer states, for a checkpoint."""
        return {n: {"module": m.state_dict(), "optimizer": self._optimizers[n].state()} for n, m in self.learnables.items()}

    def load(self, state: dict[str, Any]) -> None:
        """Continue from ``state()``."""
        for name, own in state.items():
            self.learnables[name].load_state_dict(own["module"])
            self._optimizers[name].load(own["optimizer"])
