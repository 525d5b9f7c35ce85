"""The objective seam: prefix and policy -> finished samples with gradient, whose mean reward is raised.

The objectives here backpropagate a reward through some of the sampler's last evaluations and differ in which: that is all
that an objective says. Reward, regularizers and optimizer are the learner's. One of your own is a class with the decorator
``register``, named by ``--objective module:name``.
"""

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

import torch

from envs.denoising import DenoisingProcess
from envs.plugins import load_module
from pirf_ray.policy import Policy
from pirf_ray.rollout import Prefix

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


OBJECTIVES: dict[str, Objective] = {}
ObjectiveClass = TypeVar("ObjectiveClass", bound=type)


def register(name: str) -> Callable[[ObjectiveClass], ObjectiveClass]:
    """Class decorator: make an objective known under a name. ValueError if the name belongs to another class."""

    def add(cls: ObjectiveClass) -> ObjectiveClass:
        known = OBJECTIVES.get(name)
        if known is not None and type(known).__qualname__ != cls.__qualname__:
            raise ValueError(f"objective {name!r} is taken by {type(known).__module__}.{type(known).__qualname__}")
        OBJECTIVES[name] = cls()
        return cls

    return add


def find_objective(name: str) -> Objective:
    """The objective registered as ``name``; ``module:name`` imports the module first. ValueError names what there is."""
    module, colon, plain = name.rpartition(":")
    if colon:
        load_module(module)
    if plain not in OBJECTIVES:
        raise ValueError(f"--objective: unknown objective {plain!r}; known: {', '.join(sorted(OBJECTIVES))}")
    return OBJECTIVES[plain]
