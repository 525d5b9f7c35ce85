"""Fidelity by distances: how far a set of generated fields is from a set of real ones. Pure functions of two sample sets.

Sets are fields (n, c, h, w) in physical units. Distances are |x - y| = sqrt(mean over grid and channels of
((x - y)/s_c)^2) with s_c the standard deviation of channel c of the reference set (always the second argument), so
that channels weigh alike and every distance is dimensionless. A set with a non-finite sample gives nan, never 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from envs.pdes import PDE
from pirf_ray.metrics.statistics import channel_scale

BLOCK = 512
"""Samples whose distances are held at once."""


@dataclass(frozen=True, kw_only=True)
class Distances:
    """Mean distances of set a (n samples) and reference set b (m samples), from one pass over the pairs.

    ``cross`` = E|X-Y|; ``within_a`` = E|X-X'| and ``within_b`` = E|Y-Y'| over all pairs, i = j included (as 0);
    ``nearest`` = median over a of the distance to the nearest of b.
    """

    n: int
    m: int
    cross: float
    within_a: float
    within_b: float
    nearest: float

    @property
    def energy(self) -> float:
        """sqrt(2 E|X-Y| - E|X-X'| - E|Y-Y'|), see ``energy_distance``."""
        squared = 2 * self.cross - self.within_a - self.within_b
        return 0.0 if squared < 0 else math.sqrt(squared)  # rounding only; nan stays nan

    @property
    def energy_squared_unbiased(self) -> float:
        """2 E|X-Y| - E|X-X'| - E|Y-Y'| over pairs i != j, see ``energy_distance_squared_unbiased``."""
        return 2 * self.cross - _distinct(self.within_a, self.n) - _distinct(self.within_b, self.m)

    @property
    def energy_same_law(self) -> float:
        """What ``energy`` is at these n and m when a has b's law: sqrt((1/n + 1/m) E|Y-Y'|)."""
        return math.sqrt((1 / self.n + 1 / self.m) * _distinct(self.within_b, self.m))

    @property
    def diversity_ratio(self) -> float:
        """Mean distance of two samples of a over that of two samples of b."""
        return _distinct(self.within_a, self.n) / _distinct(self.within_b, self.m)


def _distinct(mean: float, count: int) -> float:
    """Mean over pairs i != j, from the mean over all pairs."""
    return mean * count / (count - 1) if count > 1 else math.nan


def compare(a: torch.Tensor, b: torch.Tensor) -> Distances:
    """All mean distances of a (n, c, h, w) against the reference b (m, c, h, w)."""
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
    """sqrt(2 E|X-Y| - E|X-X'| - E|Y-Y'|), dimensionless, >= 0 (Szekely & Rizzo 2013, V-statistic: pairs i = j included).

    a: (n, c, h, w), b: (m, c, h, w), physical units. 0 for identical sets. For two sets of the same law it is not 0:
    the expectation of its square is (1/n + 1/m) E|X-X'|, so compare it with real data at the same n and m.
    """
    return compare(a, b).energy


def energy_distance_squared_unbiased(a: torch.Tensor, b: torch.Tensor) -> float:
    """2 E|X-Y| - E|X-X'| - E|Y-Y'| over pairs i != j (U-statistic): mean 0 for sets of the same law, may be negative."""
    return compare(a, b).energy_squared_unbiased


def marginal_energy_distance(pde: PDE, a: torch.Tensor, b: torch.Tensor) -> float:
    """Energy distance of the part whose law is known (``pde.marginal``): coefficient, source or initial condition."""
    return energy_distance(_as_fields(pde.marginal(a)), _as_fields(pde.marginal(b)))


def diversity(fields: torch.Tensor, reference: torch.Tensor) -> float:
    """Mean distance E|X-X'| of two different samples of fields (n, c, h, w), in the reference's standard deviations."""
    x = _points(fields, reference)
    return _distinct(_mean_distance(x, x), len(x))


def nearest_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Median over samples of a of the distance to the nearest sample of b (training data: memorization; held-out: coverage)."""
    x, y = _points(a, b), _points(b, b)
    return torch.cat([block.amin(1) for block in _distance_blocks(x, y)]).median().item()


def _points(fields: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Points (n, c h w), float64, whose Euclidean distance is the module's |x - y|; centred, which saves digits in cdist."""
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
    """(n, ...) as fields: four axes are (n, c, h, w) already, fewer are one channel."""
    return marginal if marginal.ndim == 4 else marginal.flatten(1)[:, None, None]
