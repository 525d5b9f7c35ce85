"""The seam of the regularizers, which hold the tuned model near the reference. A regularizer is made with (settings, context).

>>> import torch
>>> class PathKL(Regularizer):
...     "KL divergence of the tuned chain to the reference's."
...     def penalty(self, batch, policies, loss):
...         return Loss(value=0.1 * loss.kl.mean(), metrics={"path_kl": loss.kl.detach()})
"""

from typing import Any, ClassVar, Protocol

from envs.common.parts import PartRegistry, PartSettings
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.losses import Batch, Context, Loss


class Regularizer(Protocol):
    """Penalty that is added to the objective's loss. Subclasses inherit the defaults below."""

    OPTIONAL: ClassVar[tuple[str, ...]] = ("context", "settings")
    Settings: ClassVar[type[PartSettings]] = PartSettings

    settings: Any
    """Settings of the class ``Settings``."""
    context: Context
    """What it knows of the training."""

    def __init__(self, settings: Any, context: Context) -> None:
        self.settings, self.context = settings, context

    @classmethod
    def needs_base_output(cls, settings: Any) -> bool:
        """Return whether prefixes must carry the base model's output."""
        return False

    def penalty(self, batch: Batch, policies: Policies, loss: Loss) -> Loss:
        """Return the penalty of a micro-batch as a mean over its samples. ``loss``: of the objective, with what it made."""
        ...

    def advance(self, policies: Policies, update: int) -> None:
        """Follow an update of the weights on every rank: move the reference, or do nothing."""


REGULARIZERS: PartRegistry[Regularizer] = PartRegistry("regularizer", Regularizer, flag="regularizers")
"""Regularizers by name."""
register = REGULARIZERS.register
