"""The optimizer of an update: settings, one flat gradient, clipping, and Adam with a rate per group."""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from envs.common.checks import not_negative, positive, require
from pirf_ray.learning.parameters.base import Group


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Settings of the optimizer and of the moving average."""

    updates: int = 100
    """Number of updates of the weights in all."""
    batch: int = 16
    """Samples per update, over all learner workers."""
    micro_batch: int = 16
    """Samples replayed at once. A larger batch accumulates its gradient over micro-batches."""
    learning_rate: float = 2e-4
    """Learning rate of Adam. There is no warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Schedule of the learning rate: constant, or half a cosine down to zero at the last update."""
    clip_norm: float = 1.0
    """Largest norm of the gradient. A longer gradient is scaled down to this norm."""
    ema_decay: float = 0.9
    """Decay per update of the moving average of the learning weights. The averaged weights are evaluated and kept."""
    max_skipped: int = 10
    """Largest number of updates that are skipped for a non-finite gradient. One more ends the run."""

    def __post_init__(self) -> None:
        positive(self, "updates", "batch", "micro_batch", "learning_rate", "clip_norm")
        require(0 <= self.ema_decay < 1, f"--ema-decay must be in [0, 1), got {self.ema_decay}")
        not_negative(self, "max_skipped")

    def rate(self, update: int) -> float:
        """Return the learning rate after ``update`` updates."""
        if self.schedule == "constant":
            return self.learning_rate
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * update / self.updates))


class GroupedAdam:
    """Adam over groups of parameters. It steps with gradients that are given as one flat tensor."""

    def __init__(self, groups: list[Group]) -> None:
        self.groups = groups
        self.parameters = [p for group in groups for p in group.parameters.values()]
        self._adam = torch.optim.Adam([{"params": list(group.parameters.values())} for group in groups], lr=1.0)

    def clear(self) -> None:
        """Drop the gradients of the parameters."""
        for parameter in self.parameters:
            parameter.grad = None

    def flat_gradient(self) -> torch.Tensor:
        """Return the gradients of all parameters as one tensor (n,). A parameter without a gradient has zeros."""
        return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in self.parameters])

    def step(self, gradient: torch.Tensor, *, rate: float, clip_norm: float) -> None:
        """Step along the clipped gradient (n,)."""
        sizes = [sum(p.numel() for p in group.parameters.values()) for group in self.groups]
        parts = list(torch.split(gradient, sizes))
        joint = [i for i, group in enumerate(self.groups) if group.clip is None]
        norm = torch.stack([parts[i].square().sum() for i in joint]).sum().sqrt().item() if joint else 0.0
        for i, group in enumerate(self.groups):
            own, limit = (norm, clip_norm) if group.clip is None else (parts[i].norm().item(), group.clip)
            parts[i] = parts[i] * min(1.0, limit / max(own, 1e-12))
            self._adam.param_groups[i]["lr"] = rate * group.rate
        offset, clipped = 0, torch.cat(parts)
        for parameter in self.parameters:
            parameter.grad = clipped[offset : offset + parameter.numel()].reshape(parameter.shape)
            offset += parameter.numel()
        self._adam.step()

    def state(self) -> dict[str, Any]:
        """Return Adam's state, as tensors and plain containers."""
        state: dict[str, Any] = self._adam.state_dict()
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Continue from ``state()``."""
        self._adam.load_state_dict(state)
