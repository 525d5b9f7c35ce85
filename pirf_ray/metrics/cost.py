"""What a computation spends, counted where it happens: network forwards and gradients, residual gradients, seconds."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from pirf_ray.diffusion.denoiser import Denoiser

GRADIENT_COST = 2.0
"""Backward pass of the network in forwards."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Counts are of samples: a network evaluated on a batch of 8 counts 8."""

    network_forwards: float = 0.0
    network_gradients: float = 0.0
    residual_gradients: float = 0.0
    seconds: float = 0.0

    @property
    def units(self) -> float:
        """In network forwards; residual gradients are not in it."""
        return self.network_forwards + GRADIENT_COST * self.network_gradients

    def per(self, samples: int) -> "Cost":
        """The cost of each of so many samples."""
        return Cost(**{name: value / samples for name, value in vars(self).items()})

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{name: value + vars(other)[name] for name, value in vars(self).items()})


_active: list["Meter"] = []


class Meter:
    """Counts what every denoiser does inside the block, gradients that reach its output included.

    A backward pass counts whole, whatever part of the network it passes.

    ``with Meter() as meter: ...``, then ``meter.cost``. Residual gradients are those of ``Problem.residual``.
    """

    def __init__(self) -> None:
        self.forwards = self.gradients = self.residual_gradients = 0
        self.seconds = 0.0
        self._handles: list[RemovableHandle] = []

    @property
    def cost(self) -> Cost:
        return Cost(
            network_forwards=self.forwards,
            network_gradients=self.gradients,
            residual_gradients=self.residual_gradients,
            seconds=self.seconds,
        )

    def __enter__(self) -> "Meter":
        # Forwards when they begin: one that is computed again in a backward pass may end as soon as it has what is needed.
        self._handles = [register_module_forward_pre_hook(self._begin), register_module_forward_hook(self._end)]
        self._started = time.perf_counter()
        _active.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.seconds += time.perf_counter() - self._started
        _active.remove(self)
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, Denoiser):
            self.forwards += len(inputs[0])

    def _end(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(module, Denoiser) and output.requires_grad:
            output.register_hook(self._count_gradient)

    def _count_gradient(self, gradient: torch.Tensor) -> None:
        self.gradients += len(gradient)


def count_residual_gradients(residual: torch.Tensor) -> None:
    """Every active meter counts the samples of ``residual`` (b,) whenever it is differentiated."""

    def count(gradient: torch.Tensor) -> None:
        for meter in _active:
            meter.residual_gradients += len(gradient)

    if residual.requires_grad and _active:
        residual.register_hook(count)
