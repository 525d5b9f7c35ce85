"""The method seam: what a scientist might use instead, on the same base model, the same solver and the same noise.

A method says which settings it has and how they are searched, how it trains (if it does), and how it samples. Each is one
small file; one of your own is a class with the decorator ``register``, named by ``--methods module:name``.
"""

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import optuna
import torch

from envs.denoising import DenoisingProcess
from envs.pdes import PDE
from envs.plugins import load_module
from pirf_ray.checkpoints import ModelInfo
from pirf_ray.denoiser import Denoiser
from pirf_ray.methods.meter import count_residual_gradients

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
        return self.info.pde()

    @property
    def device(self) -> torch.device:
        return next(self.base.parameters()).device

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Mean square residual (b,) of the PDE's default operator, physical units; its gradients are metered."""
        residual = self.pde.residual(self.pde.normalizer.to_physical(x), self.pde.default_operator)
        count_residual_gradients(residual)
        return residual

    def residual_gradient(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(d residual / dx (b, c, h, w), residual (b,)), no graph kept; each sample's own."""
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            residual = self.residual(x)
            (gradient,) = torch.autograd.grad(residual.sum(), x)
        return gradient, residual.detach()


class Sampler(Protocol):
    """Noise to samples."""

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        """Standard normal noise (b, c, h, w) to samples x_0 (b, c, h, w), model units. Called without gradient."""
        ...


class Method(ABC):
    """One way to get fields that obey the PDE."""

    name: ClassVar[str]
    """What ``--methods`` calls it."""
    title: ClassVar[str]
    """What tables call it."""
    source: ClassVar[str]
    """Where it is from."""
    trains: ClassVar[bool] = False
    """Whether it learns anything before it samples."""

    def defaults(self, problem: Problem) -> Settings:
        """The settings of the first trial: its authors' where they say any. Empty: there is nothing to search."""
        return {}

    def suggest(self, trial: optuna.Trial, problem: Problem) -> Settings:
        """Settings of a trial, of the same names as ``defaults``."""
        return {}

    def train(self, problem: Problem, settings: Settings, *, budget: float, seed: int) -> Weights:
        """Learn from the base model, spending at most about ``budget`` (network forwards, a gradient counting two more)."""
        return {}

    @abstractmethod
    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        """How it samples with what it has learned."""


class Follower(Method):
    """Ends another method's samples in its own way: the same settings, the same weights, and those samples are made once."""

    follows: ClassVar[str]
    """Name of the method that makes the samples."""

    @abstractmethod
    def finish(self, problem: Problem, x: torch.Tensor) -> torch.Tensor:
        """The other method's samples to one's own: (b, c, h, w), model units."""

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        lead = find_method(self.follows).sampler(problem, settings, weights)
        return lambda process, noise: self.finish(problem, lead(process, noise))


METHODS: dict[str, Method] = {}


def register(cls: type[Method]) -> type[Method]:
    """Class decorator: make a method known under its name. ValueError if the name belongs to another class, or can be no file's."""
    if not re.fullmatch(r"\w[\w.-]*", cls.name):
        raise ValueError(f"method name {cls.name!r}: letters, digits, '_', '-' and '.' only, since files are named by it")
    known = METHODS.get(cls.name)
    if known is not None and type(known).__qualname__ != cls.__qualname__:
        raise ValueError(f"method {cls.name!r} is taken by {type(known).__module__}.{type(known).__qualname__}")
    METHODS[cls.name] = cls()
    return cls


def find_method(name: str) -> Method:
    """The method registered as ``name``; ``module:name`` imports the module first. ValueError names what there is."""
    module, colon, plain = name.rpartition(":")
    if colon:
        load_module(module)
    if plain not in METHODS:
        raise ValueError(f"--methods: unknown method {plain!r}; known: {', '.join(METHODS)}")
    return METHODS[plain]
