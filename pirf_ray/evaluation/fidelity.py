"""Fidelity: how far a set of generated fields is from a set of real ones. Pure functions of two sample sets.

Sets are fields (n, c, h, w) in physical units. Distances are |x - y| = sqrt(mean over grid and channels of
((x - y)/s_c)^2) with s_c the standard deviation of channel c of the reference set (always the second argument), so
that channels weigh alike and every distance is dimensionless. A set with a non-finite sample gives nan, never 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from envs.pdes import PDE

BLOCK = 512
"""Samples whose distances or transforms are held at once."""
POWER_FLOOR = 1e-12
"""Power, relative to the reference's largest, under which spectra are rounding of float32 fields and not compared."""
RESAMPLES = 1000
Periodic = tuple[bool, bool]


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


def amplitude(fields: torch.Tensor) -> torch.Tensor:
    """Standard deviation (c,) over samples and grid, physical units, float64."""
    return fields.double().transpose(0, 1).flatten(1).std(1)


def amplitude_ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Amplitude of a over that of b, (c,)."""
    return amplitude(a) / amplitude(b)


def mean_field_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """MMSE: mean over grid and channels of ((mean_a - mean_b)/s_c)^2, means over samples."""
    return _mean_square(a.double().mean(0) - b.double().mean(0), b)


def std_field_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """SMSE: mean over grid and channels of ((std_a - std_b)/s_c)^2, standard deviations over samples."""
    return _mean_square(a.double().std(0) - b.double().std(0), b)


def spectrum(fields: torch.Tensor, axis: int = -1, *, periodic: bool = True) -> torch.Tensor:
    """Mean power (c, size//2 + 1) by wavenumber index k = 0..size//2 along one axis of fields (n, c, h, w), units^2.

    One-sided: its sum over k is the mean square. An axis that is not periodic is multiplied by a Hann window first.
    """
    lines = fields.double().movedim(axis, -1)
    size = lines.shape[-1]
    window = _window(size, periodic).to(fields.device)
    power = torch.fft.rfft(lines * window, norm="forward").abs().square().mean((0, 2))
    k = torch.arange(size // 2 + 1, device=fields.device)
    return torch.where((k == 0) | (2 * k == size), power, 2 * power)


def log_spectrum_error(a: torch.Tensor, b: torch.Tensor, periodic: Periodic = (True, True)) -> float:
    """Root mean square over wavenumber bins and channels of log10(P_a / P_b), in decades: see ``log_spectrum_errors``."""
    return log_spectrum_errors(a, b, periodic).square().mean().sqrt().item()


def log_spectrum_errors(a: torch.Tensor, b: torch.Tensor, periodic: Periodic = (True, True)) -> torch.Tensor:
    """Root mean square over wavenumber bins of log10(P_a / P_b), in decades, of each channel (c,).

    P: mean power in radial bins of unit width up to Nyquist, without k = 0; axes that are not periodic (rows, columns)
    are Hann-windowed. POWER_FLOOR of the reference's largest bin is added to both.
    """
    power_a, power_b = (_radial_bins(_power(fields, periodic)) for fields in (a, b))
    floor = POWER_FLOOR * power_b.amax(1, keepdim=True)
    return torch.log10((power_a + floor) / (power_b + floor)).square().mean(1).sqrt()


def high_wavenumber_ratio(a: torch.Tensor, b: torch.Tensor, periodic: Periodic = (True, True)) -> torch.Tensor:
    """Energy of a over that of b, (c,), in modes whose radial wavenumber is above half of Nyquist. Windows as above."""
    power_a, power_b = _power(a, periodic), _power(b, periodic)
    high = _radius(*power_a.shape[1:]).to(power_a.device) > 0.5
    floor = POWER_FLOOR * power_b.sum((1, 2))
    return (power_a[:, high].sum(1) + floor) / (power_b[:, high].sum(1) + floor)


def bootstrap_interval(
    values: torch.Tensor,
    statistic: Literal["mean", "median"] = "mean",
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    block: int = 1,
) -> tuple[float, float]:
    """95% percentile interval (Efron 1979) of the mean or median of per-sample values (n,). The same seed, the same bits.

    ``block``: so many consecutive values depend on each other and are drawn together (a cluster bootstrap, Davison & Hinkley
    1997, section 3.8); a last block that is not whole is one like the others.
    """
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values must be one a sample, got shape {tuple(values.shape)}")
    drawn = values.double().cpu().numpy()
    rng = np.random.default_rng(seed)
    if block > 1:
        blocks = np.split(drawn, range(block, len(drawn), block))
        chosen = (rng.integers(len(blocks), size=len(blocks)) for _ in range(resamples))
        resampled = (np.concatenate([blocks[i] for i in row]) for row in chosen)
    else:
        resampled = (drawn[rng.integers(len(drawn), size=len(drawn))] for _ in range(resamples))
    estimates = [np.mean(x) if statistic == "mean" else np.median(x) for x in resampled]
    low, high = np.quantile(estimates, (0.025, 0.975), method="inverted_cdf")
    return float(low), float(high)


def _points(fields: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    """Points (n, c h w), float64, whose Euclidean distance is the module's |x - y|; centred, which saves digits in cdist."""
    if fields.shape[1:] != reference.shape[1:]:
        raise ValueError(f"sets must have the same channels and grid, got {tuple(fields.shape)} and {tuple(reference.shape)}")
    centred = (fields.double() - reference.double().mean(0)) / _scale(reference)
    return centred.flatten(1) / math.sqrt(fields[0].numel())


def _scale(reference: torch.Tensor) -> torch.Tensor:
    """Standard deviations (c, 1, 1) of the reference; ValueError if a channel is constant."""
    std = amplitude(reference)
    if (std == 0).any():
        raise ValueError(f"channel {int((std == 0).nonzero()[0])} of the reference set is constant: its distances have no unit")
    return std[:, None, None]


def _mean_square(difference: torch.Tensor, reference: torch.Tensor) -> float:
    return (difference / _scale(reference)).square().mean().item()


def _distance_blocks(x: torch.Tensor, y: torch.Tensor) -> Iterator[torch.Tensor]:
    for rows in torch.split(x, BLOCK):
        yield torch.cdist(rows, y)


def _mean_distance(x: torch.Tensor, y: torch.Tensor) -> float:
    return sum(block.sum().item() for block in _distance_blocks(x, y)) / (len(x) * len(y))


def _as_fields(marginal: torch.Tensor) -> torch.Tensor:
    """(n, ...) as fields: four axes are (n, c, h, w) already, fewer are one channel."""
    return marginal if marginal.ndim == 4 else marginal.flatten(1)[:, None, None]


def _window(size: int, periodic: bool) -> torch.Tensor:
    """Ones, or a Hann window scaled to mean square 1, (size,)."""
    if periodic:
        return torch.ones(size, dtype=torch.float64)
    window = torch.hann_window(size, dtype=torch.float64)
    return window / window.square().mean().sqrt()


def _power(fields: torch.Tensor, periodic: Periodic) -> torch.Tensor:
    """Mean power (c, h, w) of each mode, over samples."""
    h, w = fields.shape[-2:]
    window = (_window(h, periodic[0])[:, None] * _window(w, periodic[1])).to(fields.device)
    total = torch.zeros(fields.shape[1:], dtype=torch.float64, device=fields.device)
    for block in torch.split(fields, BLOCK):
        total += torch.fft.fft2(block.double() * window, norm="forward").abs().square().sum(0)
    return total / len(fields)


def _radius(h: int, w: int) -> torch.Tensor:
    """Radial wavenumber (h, w) of each mode in units of Nyquist."""
    rows, columns = (2 * torch.fft.fftfreq(size, dtype=torch.float64) for size in (h, w))
    return torch.hypot(rows[:, None], columns)


def _radial_bins(power: torch.Tensor) -> torch.Tensor:
    """Mean power (c, min(h, w)//2) in radial bins k = 1..Nyquist of power (c, h, w)."""
    h, w = power.shape[1:]
    nyquist = min(h, w) // 2
    bins = (_radius(h, w) * nyquist).round().long().flatten().to(power.device)
    total = torch.zeros((len(power), int(bins.max()) + 1), dtype=power.dtype, device=power.device)
    total.index_add_(1, bins, power.flatten(1))
    return (total / torch.bincount(bins))[:, 1 : nyquist + 1]
