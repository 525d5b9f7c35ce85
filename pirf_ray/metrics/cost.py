"""The cost of a computation, counted while it runs: network forwards and gradients, residual gradients, seconds."""

import time
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle

from pirf_ray.diffusion.denoiser import AbstractDenoiser

GRADIENT_COST = 2.0
"""Cost of a backward pass of the network, in forwards."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Cost of a computation. Counts are per sample: a network evaluation on a batch of 8 counts 8."""

    network_forwards: float = 0.0
    """Forward passes of the network."""
    network_gradients: float = 0.0
    """Backward passes of the network."""
    residual_gradients: float = 0.0
    """Gradients of a residual that pass no network."""
    seconds: float = 0.0
    """Wall-clock time, seconds."""

    @property
    def units(self) -> float:
        """Return the cost in network forwards, without residual gradients."""
        return self.network_forwards + GRADIENT_COST * self.network_gradients

    def per(self, samples: int) -> "Cost":
        """Return the cost per sample of ``samples`` samples."""
        return Cost(**{name: value / samples for name, value in vars(self).items()})

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(**{name: value + vars(other)[name] for name, value in vars(self).items()})


_active: list["Meter"] = []


class Meter:
    """Meter of the cost inside its block: ``with Meter() as meter: ...``, then ``meter.cost``.

    It counts every forward pass of a denoiser and every gradient that reaches a denoiser's output. A denoiser inside another
    counts once, as the outer one. A backward pass counts fully even if it passes only part of the network. Residual gradients
    count if ``count_residual_gradients`` saw the residual.
    """

    def __init__(self) -> None:
        self.forwards = self.gradients = self.residual_gradients = 0
        self.seconds = 0.0
        self._depth = 0
        self._handles: list[RemovableHandle] = []

    @property
    def cost(self) -> Cost:
        """Return the cost so far; seconds count when the block has ended."""
        return Cost(
            network_forwards=self.forwards,
            network_gradients=self.gradients,
            residual_gradients=self.residual_gradients,
            seconds=self.seconds,
        )

    def __enter__(self) -> "Meter":
        # Forwards count when they begin. Checkpointing may break off a recomputed forward as soon as it has all activations.
        # Such a forward ends with an exception, and the hook of its end is called all the same.
        end = register_module_forward_hook(self._end, always_call=True)
        self._handles = [register_module_forward_pre_hook(self._begin), end]
        self._started = time.perf_counter()
        _active.append(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.seconds += time.perf_counter() - self._started
        _active.remove(self)
        for handle in self._handles:
            handle.remove()

    def _begin(self, module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, AbstractDenoiser):
            self.forwards += len(inputs[0]) if self._depth == 0 else 0
            self._depth += 1

    def _end(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(module, AbstractDenoiser):
            return
        self._depth -= 1
        if self._depth == 0 and output is not None and output.requires_grad:
            output.register_hook(self._count_gradient)

    def _count_gradient(self, gradient: torch.Tensor) -> None:
        self.gradients += len(gradient)


def count_residual_gradients(residual: torch.Tensor) -> None:
    """Make every active meter count the samples of ``residual`` (b,) each time it is differentiated."""

    def count(gradient: torch.Tensor) -> None:
        for meter in _active:
            meter.residual_gradients += len(gradient)

    if residual.requires_grad and _active:
        residual.register_hook(count)  # type: ignore[no-untyped-call]
