"""The objective seam: from a batch of rollouts to a loss. An objective is made with (settings, context).

>>> import torch
>>> from pirf_ray.learning.rollouts import replay
>>> class Replayed(Objective):
...     "Minus the reward of the replayed last K steps."
...     makers, needs_gradient = ("prefixes",), True
...     def loss(self, batch, policies, reward):
...         x = replay(self.context.process, policies.tuned, batch.rollouts)
...         r = self.context.reward(reward, x).reward
...         return Loss(value=-r.mean(), metrics={"reward": r.detach()}, samples=[x])
...     def cost(self, batch):
...         evaluations = self.context.process.evaluations_from(batch.rollouts.step)
...         return Cost(network_forwards=evaluations * len(batch), network_gradients=evaluations * len(batch))
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from envs.common.parts import PartRegistry, PartSettings
from envs.rewards.base import Reward
from pirf_ray.diffusion.policies import Behaviour, Policies
from pirf_ray.learning.learnables import Learnable
from pirf_ray.learning.losses import Batch, Context, Loss
from pirf_ray.metrics.cost import Cost


class Objective(Protocol):
    """Mathematics of one update. Subclasses inherit the defaults below."""

    OPTIONAL: ClassVar[tuple[str, ...]] = ("context", "settings")
    Settings: ClassVar[type[PartSettings]] = PartSettings
    makers: ClassVar[tuple[str, ...]]
    """Makers whose rollouts it can use. The first is the default."""
    credit: ClassVar[str] = "none"
    """Credit that fills the advantages, unless the user names another."""
    behaviour: ClassVar[Behaviour] = "tuned"
    """Policy that makes the rollouts, unless settings decide (``behaviour_of``)."""
    min_group: ClassVar[int] = 1
    """Smallest group that it can compare."""
    group_multiple: ClassVar[int] = 1
    """Number of samples of which a group must hold a multiple: 2 for pairs."""
    needs_gradient: ClassVar[bool]
    """Whether it differentiates the reward."""
    coupled: bool = False
    """Whether its loss needs all samples of a group in one micro-batch. Settings may decide."""
    stochastic: ClassVar[bool] = False
    """Whether it needs a process whose steps have a log density."""
    deterministic: ClassVar[bool] = False
    """Whether it needs a process without noise."""

    settings: Any
    """Settings of the class ``Settings``."""
    context: Context
    """What it knows of the training."""

    def __init__(self, settings: Any, context: Context) -> None:
        self.settings, self.context = settings, context

    @classmethod
    def behaviour_of(cls, settings: Any) -> Behaviour:
        """Return the policy that makes the rollouts with these settings."""
        return cls.behaviour

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        """Return the loss of a micro-batch, as a mean over its samples."""
        ...

    def cost(self, batch: Batch) -> Cost:
        """Return the network evaluations of ``loss`` and its backward pass, for this very batch."""
        ...

    def learnables(self) -> Mapping[str, Learnable]:
        """Return the parts that learn beside the policy, by name. Called once."""
        return {}

    def advance(self, policies: Policies, update: int) -> None:
        """Follow an update of the weights on every rank: move the old policy, or do nothing."""


OBJECTIVES: PartRegistry[Objective] = PartRegistry("objective", Objective)
"""Objectives by name."""
register = OBJECTIVES.register
