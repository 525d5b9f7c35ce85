"""The metric seam: one number of a set of fields against held-out real fields.

>>> import torch
>>> @metric("largest-value-ratio", best=1.0)
... def largest_value_ratio(fields, real, pde):
...     "Largest absolute value divided by real fields' largest absolute value."
...     return fields.abs().max() / real.abs().max()
>>> METRICS["largest-value-ratio"](torch.ones(2, 1, 8, 8), torch.full((2, 1, 8, 8), 2.0), None)
0.5
>>> largest_value_ratio(torch.ones(1), torch.ones(1), None)
tensor(1.)

``evaluate --metrics module:largest-value-ratio`` imports the module and finds the metric under its name.
"""

import inspect
import re
from collections.abc import Callable, Iterable
from typing import Any, Protocol, TypeVar

import torch

from envs.common.registry import Registry
from envs.pdes import PDE

REWARD = "reward"
"""Name of the mean reward among the named metrics of a set. No metric may have it."""
Function = TypeVar("Function", bound=Callable[..., Any])


class Metric(Protocol):
    """A number of a set of fields. It does not depend on the order of the samples."""

    best: float
    """Value of a perfect set: 0 for errors, 1 for ratios; -inf or inf if a lower or a higher number is always better."""

    def __call__(self, fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> float:
        """Return the number of fields (n, c, h, w) against real fields (m, c, h, w), physical units."""
        ...


METRICS: Registry[Metric] = Registry("metric", flag="metrics")
"""Metrics by name."""


class FunctionMetric:
    """A function of (fields, real, pde) as a metric."""

    def __init__(self, name: str, function: Callable[..., Any], best: float) -> None:
        """Set the function, which returns a number or a tensor with one element. ``name`` stands in messages."""
        self.name, self.function, self.best = name, function, best
        self.line = (inspect.getdoc(function) or "").partition("\n")[0]

    def __call__(self, fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> float:
        """Return the number of fields (n, c, h, w) against real fields (m, c, h, w). TypeError if it is no number."""
        with torch.no_grad():
            value = self.function(fields, real, pde)
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"metric {self.name!r} must return a number, got {type(value).__name__}: {error}") from error


def metric(name: str, *, best: float = 0.0) -> Callable[[Function], Function]:
    """Return a decorator that registers a function of (fields, real, pde) as a metric. The function stays unchanged.

    ``best``: see ``Metric``. ValueError if the name cannot stand in JSON names, or belongs to another module.
    """
    if not re.fullmatch(r"\w[\w.-]*", name) or name == REWARD:
        raise ValueError(f"the name of a metric has letters, digits, '_', '-' and '.' only, and is not {REWARD!r}, got {name!r}")

    def add(function: Function) -> Function:
        METRICS.add(name, FunctionMetric(name, function, best), owner=function.__module__)
        return function

    return add


def find_metrics(names: Iterable[str]) -> dict[str, Metric]:
    """Return metrics by their plain names. ``module:name`` imports the module first. ValueError names the known metrics."""
    return {name.rpartition(":")[2]: METRICS.find(name) for name in names}
