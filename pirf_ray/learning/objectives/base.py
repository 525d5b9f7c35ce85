"""The objective seam: prefix and policy -> finished samples with gradient, whose mean reward is raised.

The objectives here backpropagate a reward through some of the sampler's last evaluations and differ in which: that is all
that an objective says. Reward, regularizers and optimizer are the learner's. One of your own is a class with the decorator
``register``, named by ``--objective module:name``.
"""

from collections.abc import Sequence
from typing import Protocol

import torch

from envs.common.registry import Registry
from envs.denoising import DenoisingProcess
from pirf_ray.diffusion.policy import Policy
from pirf_ray.learning.rollouts.prefixes import Prefix

FORWARD, WITH_GRADIENT = 1.0, 3.0
"""Cost of a network evaluation in network forwards: without gradient, and with its backward pass (about twice a forward)."""


class Objective(Protocol):
    """How the samples that are rewarded come from their prefix, the state at the start of step N-K."""

    def samples(
        self, process: DenoisingProcess, policy: Policy, prefix: Prefix, *, seed: int, update: int
    ) -> Sequence[torch.Tensor]:
        """One or more finished samples (b, c, h, w) of each prefix, model units, on the autograd graph.

        Random choices are functions of (seed, update) and of the prefix's sample ids, so that they are the same on every rank.
        """
        ...

    def cost(self, process: DenoisingProcess, truncation: int) -> float:
        """Mean cost of ``samples`` and its backward pass for each prefix, in network forwards."""
        ...


OBJECTIVES: Registry[Objective] = Registry("objective", make=lambda cls: cls())
register = OBJECTIVES.register
find_objective = OBJECTIVES.find
