"""The credit seam: which part of a reward belongs to a sample, or to a transition. A credit is made with (settings, context).

>>> import torch
>>> class Raw:
...     "The reward itself."
...     min_group = 1
...     def advantages(self, batch):
...         return batch.rollouts.reward
"""

from typing import Protocol

import torch

from envs.common.parts import PartRegistry
from pirf_ray.learning.losses import Batch


class Credit(Protocol):
    """Rule that fills the advantages before the loss. Whole groups are on one rank, and it gets all of this rank's samples."""

    min_group: int
    """Smallest group that it can compare."""

    def advantages(self, batch: Batch) -> torch.Tensor | None:
        """Return advantages (b,) of samples, or (m, b) of the transitions to the nodes of trajectories; None: no credit."""
        ...


CREDITS: PartRegistry[Credit] = PartRegistry("credit", Credit)
"""Credits by name."""
register = CREDITS.register
