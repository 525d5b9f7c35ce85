"""Registered metrics: one number each of the fidelity of fields (n, c, h, w) to real fields (m, c, h, w), physical units."""

import torch

from envs.pdes import PDE
from pirf_ray.metrics import distances, spectra, statistics
from pirf_ray.metrics.base import metric


@metric("energy-distance")
def energy_distance(fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> float:
    """Energy distance to the real fields (V-statistic)."""
    return distances.energy_distance(fields, real)


@metric("energy-distance-unbiased", best=-torch.inf)
def energy_distance_unbiased(fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> float:
    """Unbiased squared energy distance to the real fields (U-statistic), with the mean 0 for sets of the same law."""
    return distances.energy_distance_squared_unbiased(fields, real)


@metric("amplitude-ratio", best=1.0)
def amplitude_ratio(fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> float:
    """Standard deviation divided by real fields' standard deviation, for the channel whose ratio is farthest from 1."""
    return farthest_from_one(statistics.amplitude_ratio(fields, real))


@metric("log-spectrum-error")
def log_spectrum_error(fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> float:
    """Root mean square error of the log spectrum, decades."""
    return spectra.log_spectrum_error(fields, real, pde.grid.periodic)


@metric("high-wavenumber-ratio", best=1.0)
def high_wavenumber_ratio(fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> float:
    """Energy above half of Nyquist divided by real fields' energy there, for the channel whose ratio is farthest from 1."""
    return farthest_from_one(spectra.high_wavenumber_ratio(fields, real, pde.grid.periodic))


@metric("diversity-ratio", best=1.0)
def diversity_ratio(fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> float:
    """Mean distance of two samples divided by the mean distance of two real fields."""
    return distances.diversity(fields, real) / distances.diversity(real, real)


@metric("nearest-distance")
def nearest_distance(fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> float:
    """Median distance of a sample to the nearest real field."""
    return distances.nearest_distance(fields, real)


@metric("mean-field-error")
def mean_field_error(fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> float:
    """Mean square error of the mean field (MMSE)."""
    return statistics.mean_field_error(fields, real)


@metric("std-field-error")
def std_field_error(fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> float:
    """Mean square error of the standard-deviation field (SMSE)."""
    return statistics.std_field_error(fields, real)


def farthest_from_one(ratio: torch.Tensor) -> float:
    """Return the ratio of (c,) that is farthest from 1 on a logarithmic scale."""
    return ratio[ratio.log().abs().argmax()].item()
