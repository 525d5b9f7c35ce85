"""The method seam: what a scientist might use instead, on the same base model, the same solver and the same noise.

A method says which settings it has and how they are searched, how it trains (if it does), and how it samples. A user's own
method is a class with the decorator ``register``, named by ``--methods module:name``.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch

from envs.common.registry import Registry
from envs.common.search import Spec
from envs.pdes import PDE
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.model import Finisher
from pirf_ray.diffusion.sampling import Sampler
from pirf_ray.metrics.cost import count_residual_gradients

Settings = dict[str, Any]
"""A method's settings by name: numbers and strings."""
Weights = dict[str, torch.Tensor]
"""What a method has learned, by tensor name; empty if nothing."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What every method is given. x is (b, c, h, w), float32, model units, on the base model's device."""

    info: ModelInfo
    base: Denoiser
    num_steps: int = 20
    """N that methods train for."""

    @cached_property
    def pde(self) -> PDE:
        """Return the PDE."""
        return self.info.pde()

    @property
    def device(self) -> torch.device:
        """Return the base model's device."""
        return next(self.base.parameters()).device

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean square residual (b,) of the PDE's default operator, physical units; its gradients are metered."""
        residual = self.pde.residual(self.pde.normalizer.to_physical(x), self.pde.default_operator)
        count_residual_gradients(residual)
        return residual


class Method(ABC):
    """One way to get fields that obey the PDE."""

    name: ClassVar[str]
    """Name in ``--methods``."""
    title: ClassVar[str]
    """Name in tables."""
    source: ClassVar[str]
    """Paper or package that it is from."""
    trains: ClassVar[bool] = False
    """Whether it learns anything before it samples."""

    def defaults(self, problem: Problem) -> Settings:
        """Return the settings of the first trial: its authors' if they name any. Empty: there is nothing to search."""
        return {}

    def search(self, problem: Problem) -> Mapping[str, Spec]:
        """Return the search range of each of the ``defaults``."""
        return {}

    def train(self, problem: Problem, settings: Settings, *, budget: float, seed: int) -> Weights:
        """Learn from the base model, spending at most about ``budget`` (network forwards, a gradient counting two more)."""
        return {}

    @abstractmethod
    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        """Return the sampler with what the method has learned."""


class FinishedMethod(Method):
    """Another method's samples with a finisher: the same settings, the same weights, and those samples are made once."""

    samples_of: ClassVar[str]
    """Name of the method that makes the samples."""

    @abstractmethod
    def finisher(self, problem: Problem) -> Finisher:
        """Return what ends the other method's samples."""

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        sampler, finisher = find_method(self.samples_of).sampler(problem, settings, weights), self.finisher(problem)
        return lambda process, noise: finisher(sampler(process, noise))


METHODS: Registry[Method] = Registry("method", flag="methods", make=lambda cls: cls())
find_method = METHODS.find


def register(cls: type[Method]) -> type[Method]:
    """Register a method under its name. ValueError if the name belongs to another class, or can be no file's."""
    if not re.fullmatch(r"\w[\w.-]*", cls.name):
        raise ValueError(f"method name {cls.name!r}: letters, digits, '_', '-' and '.' only, since files are named by it")
    return METHODS.register(cls.name)(cls)
