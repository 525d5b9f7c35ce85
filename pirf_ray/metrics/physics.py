"""Physics of each sample: residuals, conditions, re-solve errors, and the sensitivity of an operator to noise."""

import math
from collections.abc import Callable

import torch

from envs.numerics import seeding
from envs.pdes import PDE
from pirf_ray.metrics.statistics import amplitude

BATCH = 64
"""Number of samples measured at once."""
PROBE_NOISE = 1e-3
"""Standard deviation of the probe noise, relative to the standard deviation of each channel."""
Measure = Callable[[torch.Tensor], torch.Tensor]
"""Function from fields (b, c, h, w), float64, to one value (b,) per sample."""


def residuals(pde: PDE, fields: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the mean square residual (n,) of each operator by name. Empty if the PDE has no operators."""
    return {name: _measured(lambda x, name=name: pde.residual(x, name), fields) for name in pde.operators}  # type: ignore[misc]


def conditions(pde: PDE, fields: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the violation (n,) of each condition by name."""
    return {name: _measured(condition, fields) for name, condition in pde.conditions.items()}


def resolve_errors(pde: PDE, fields: torch.Tensor) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return the re-solve errors (n,) of the fields and of the trivial competitor, each None if the PDE leaves it out."""
    errors = _measured(pde.resolve_error, fields) if pde.provides("resolve_error") else None
    trivial = _measured(pde.trivial_resolve_error, fields) if pde.provides("trivial_resolve_error") else None
    return errors, trivial


@torch.no_grad()
def _measured(measure: Measure, fields: torch.Tensor) -> torch.Tensor:
    """Return the values (n,) of a measure, float64. A nan counts as infinity."""
    column = torch.cat([measure(x.double()).double() for x in torch.split(fields, BATCH)])
    return torch.where(column.isnan(), math.inf, column)


@torch.no_grad()
def noise_sensitivity(pde: PDE, fields: torch.Tensor, operator: str, *, seed: int = 0) -> float:
    """Return s of (mean residual of real fields with white noise sigma) = floor + s sigma^2.

    sigma is relative to the standard deviation of each channel. s is measured in float64 with sigma = PROBE_NOISE and
    -PROBE_NOISE, so that terms linear in the noise cancel.
    """
    fields = fields.double()
    scale = amplitude(fields)[:, None, None]
    noise = seeding.normal(seed, "noise sensitivity", range(len(fields)), pde.shape).to(fields)
    rises = []
    for x, e in zip(torch.split(fields, BATCH), torch.split(PROBE_NOISE * scale * noise, BATCH), strict=True):
        rises.append((pde.residual(x + e, operator) + pde.residual(x - e, operator)) / 2 - pde.residual(x, operator))
    return torch.cat(rises).mean().item() / PROBE_NOISE**2


def noise_equivalent(residual: float, floor: float, slope: float) -> float:
    """Return the sigma of the white noise that gives real fields this residual, relative to each channel's standard deviation.

    It stays meaningful for an exact operator, whose floor is rounding. 0 at and below the floor. nan if noise does not raise the
    residual of the operator.
    """
    return math.sqrt(max(residual - floor, 0.0) / slope) if slope > 0 else math.nan
