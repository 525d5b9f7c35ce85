"""Fidelity by distances between generated and real fields. All are pure functions of two sample sets.

    |x - y| = sqrt(mean over grid and channels of ((x - y)/s_c)^2)

Sets are fields (n, c, h, w) in physical units. s_c is the standard deviation of channel c of the reference set, which is
always the second argument. So all channels have the same weight and every distance is dimensionless. A set with a non-finite
sample gives nan, never 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from envs.pdes import PDE
from pirf_ray.metrics.statistics import channel_scale

BLOCK = 512
"""Number of samples whose distances are in memory at once."""


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Mean distances of a set a with samples X and a reference set b with samples Y."""

    n: int
    """Number of samples of a."""
    m: int
    """Number of samples of b."""
    cross: float
    """E|X-Y| over all pairs."""
    within_a: float
    """E|X-X'| over all pairs, the pairs i = j included as 0."""
    within_b: float
    """E|Y-Y'| over all pairs, the pairs i = j included as 0."""
    nearest: float
    """Median over a of the distance to the nearest sample of b."""

    @property
    def energy(self) -> float:
        """Return sqrt(2 E|X-Y| - E|X-X'| - E|Y-Y'|); see ``energy_distance``."""
        squared = 2 * self.cross - self.within_a - self.within_b
        return 0.0 if squared < 0 else math.sqrt(squared)  # below 0 by rounding only; nan stays nan

    @property
    def energy_squared_unbiased(self) -> float:
        """Return 2 E|X-Y| - E|X-X'| - E|Y-Y'| over pairs i != j; see ``energy_distance_squared_unbiased``."""
        return 2 * self.cross - _distinct(self.within_a, self.n) - _distinct(self.within_b, self.m)

    @property
    def energy_same_law(self) -> float:
        """Return the energy distance of two sets of these sizes with the same law, sqrt((1/n + 1/m) E|Y-Y'|)."""
        return math.sqrt((1 / self.n + 1 / self.m) * _distinct(self.within_b, self.m))

    @property
    def diversity_ratio(self) -> float:
        """Return E|X-X'| / E|Y-Y'| over pairs i != j."""
        return _distinct(self.within_a, self.n) / _distinct(self.within_b, self.m)


def _distinct(mean: float, count: int) -> float:
    """Return the mean over pairs i != j from the mean over all pairs."""
    return mean * count / (count - 1) if count > 1 else math.nan


def compare(a: torch.Tensor, b: torch.Tensor) -> Distances:
    """Return all mean distances of a (n, c, h, w) and the reference b (m, c, h, w)."""
    x, y = _points(a, b), _points(b, b)
    cross, nearest = 0.0, []
    for block in _distance_blocks(x, y):
        cross += block.sum().item()
        nearest.append(block.amin(1))
    return Distances(
        n=len(x),
        m=len(y),
        cross=cross / (len(x) * len(y)),
        within_a=_mean_distance(x, x),
        within_b=_mean_distance(y, y),
        nearest=torch.cat(nearest).median().item(),
    )


def energy_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return sqrt(2 E|X-Y| - E|X-X'| - E|Y-Y'|) >= 0 with the pairs i = j (V-statistic; Szekely & Rizzo 2013).

    a: (n, c, h, w), b: (m, c, h, w), physical units. It is dimensionless, and 0 for identical sets. For two sets of the same
    law the expectation of its square is (1/n + 1/m) E|X-X'|. So compare it with real data at the same n and m.
    """
    return compare(a, b).energy


def energy_distance_squared_unbiased(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return 2 E|X-Y| - E|X-X'| - E|Y-Y'| over pairs i != j (U-statistic). Its mean is 0 for sets of the same law."""
    return compare(a, b).energy_squared_unbiased


def marginal_energy_distance(pde: PDE, a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the energy distance of the marginal (``pde.marginal``): the coefficient, source or initial condition.

    NotProvided if the PDE has no part of known law.
    """
    return energy_distance(_as_fields(pde.marginal(a)), _as_fields(pde.marginal(b)))


def diversity(fields: torch.Tensor, reference: torch.Tensor) -> float:
    """Return E|X-X'| over pairs i != j of fields (n, c, h, w), in standard deviations of the reference."""
    x = _points(fields, reference)
    return _distinct(_mean_distance(x, x), len(x))


def nearest_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the median over a of the distance to the nearest sample of b.

    It measures memorization if b is training data, and coverage if b is held-out data.
    """
    x, y = _points(a, b), _points(b, b)
    return torch.cat([block.amin(1) for block in _distance_blocks(x, y)]).median().item()


def _points(fields: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Return points (n, c h w), float64, whose Euclidean distance is |x - y|. Centred points lose fewer digits in cdist."""
    if fields.shape[1:] != reference.shape[1:]:
        raise ValueError(f"sets must have the same channels and grid, got {tuple(fields.shape)} and {tuple(reference.shape)}")
    centred = (fields.double() - reference.double().mean(0)) / channel_scale(reference)
    return centred.flatten(1) / math.sqrt(fields[0].numel())


def _distance_blocks(x: torch.Tensor, y: torch.Tensor) -> Iterator[torch.Tensor]:
    for rows in torch.split(x, BLOCK):
        yield torch.cdist(rows, y)


def _mean_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return sum(block.sum().item() for block in _distance_blocks(x, y)) / (len(x) * len(y))


def _as_fields(marginal: torch.Tensor) -> torch.Tensor:
    """Return a marginal (n, ...) as fields (n, c, h, w). Fewer than four axes become one channel with one row."""
    return marginal if marginal.ndim == 4 else marginal.flatten(1)[:, None, None]
