"""The objective seam: an objective makes finished samples with gradient from prefixes; the learner raises their mean reward.

Objectives backpropagate the reward through some of the sampler's last evaluations, and differ in which evaluations. Reward,
regularizers and optimizer belong to the learner. An objective of your own is a class with the decorator ``register``. Name it
with ``--objective module:name``.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from envs.common.registry import Registry
from envs.denoising import DenoisingProcess
from pirf_ray.diffusion.policy import Policy
from pirf_ray.learning.rollouts.prefixes import Prefix

FORWARD, WITH_GRADIENT = 1.0, 3.0
"""Cost of a network evaluation without gradient, and with its backward pass (about two forwards), in network forwards."""


class Objective(Protocol):
    """Way from a prefix, the state at the start of step N-K, to the samples that are rewarded."""

    def samples(
        self, process: DenoisingProcess, policy: Policy, prefix: Prefix, *, seed: int, update: int
    ) -> Sequence[torch.Tensor]:
        """Return one or more batches of finished samples (b, c, h, w), model units, on the autograd graph.

        Random choices are functions of (seed, update) and of the sample ids, so they are the same for every number of ranks.
        """
        ...

    def cost(self, process: DenoisingProcess, truncation: int) -> float:
        """Return the mean cost of ``samples`` and its backward pass per prefix, in network forwards."""
        ...


OBJECTIVES: Registry[Objective] = Registry("objective", make=lambda cls: cls())
register = OBJECTIVES.register
find_objective = OBJECTIVES.find
