"""What physics says of each sample: residuals, conditions, re-solve errors, and what noise an operator feels."""

import math
from collections.abc import Callable

import torch

from envs.numerics import seeding
from envs.pdes import PDE
from pirf_ray.metrics.statistics import amplitude

BATCH = 64
PROBE_NOISE = 1e-3
Measure = Callable[[torch.Tensor], torch.Tensor]
"""Fields (b, c, h, w), float64 -> one value (b,) per sample."""


def residuals(pde: PDE, fields: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the mean square residual (n,) of each operator by name."""
    return {name: _measured(lambda x, name=name: pde.residual(x, name), fields) for name in pde.operators}  # type: ignore[misc]


def conditions(pde: PDE, fields: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the violation (n,) of each condition by name."""
    return {name: _measured(condition, fields) for name, condition in pde.conditions.items()}


def resolve_errors(pde: PDE, fields: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the re-solve errors (n,) of the fields, and of the trivial competitor."""
    return _measured(pde.resolve_error, fields), _measured(pde.trivial_resolve_error, fields)


@torch.no_grad()
def _measured(measure: Measure, fields: torch.Tensor) -> torch.Tensor:
    """Return the measure (n,), float64; a sample whose value is not a number counts as infinitely wrong."""
    column = torch.cat([measure(x.double()).double() for x in torch.split(fields, BATCH)])
    return torch.where(column.isnan(), math.inf, column)


@torch.no_grad()
def noise_sensitivity(pde: PDE, fields: torch.Tensor, operator: str, *, seed: int = 0) -> float:
    """Return s of (mean residual of exact fields with white noise) = floor + s sigma^2, sigma relative to each channel's std.

    It is measured in float64 at sigma = PROBE_NOISE and its negative, so that terms linear in the noise cancel.
    """
    fields = fields.double()
    scale = amplitude(fields)[:, None, None]
    noise = seeding.normal(seed, "noise sensitivity", range(len(fields)), pde.shape).to(fields)
    rises = []
    for x, e in zip(fields.split(BATCH), (PROBE_NOISE * scale * noise).split(BATCH), strict=True):
        rises.append((pde.residual(x + e, operator) + pde.residual(x - e, operator)) / 2 - pde.residual(x, operator))
    return torch.cat(rises).mean().item() / PROBE_NOISE**2


def noise_equivalent(residual: float, floor: float, slope: float) -> float:
    """Return sigma of the white noise (of each channel's std) that gives exact fields this residual; 0 at and below the floor.

    It says what ``over_floor`` cannot where an operator is exact and its floor is rounding. nan where noise does not raise
    the operator's residual.
    """
    return math.sqrt(max(residual - floor, 0.0) / slope) if slope > 0 else math.nan
