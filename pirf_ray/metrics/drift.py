"""Drift: how far a tuned model's samples are from the base model's, in statistics that a hacked reward changes."""

from dataclasses import dataclass

import torch

from envs.common.checks import positive
from envs.pdes import PDE
from pirf_ray.metrics.distances import energy_distance
from pirf_ray.metrics.spectra import log_spectrum_errors
from pirf_ray.metrics.statistics import amplitude


@dataclass(frozen=True, kw_only=True)
class FidelityStatistics:
    """Statistics of a set of fields against held-out real fields."""

    amplitude: torch.Tensor
    """Standard deviation of each channel (c,)."""
    energy: float
    """Energy distance to the real fields."""
    spectrum: torch.Tensor
    """Log spectrum error of each channel (c,), decades. Amplitude and energy distance do not see small scales smoothed away."""

    @classmethod
    def of(cls, fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> "FidelityStatistics":
        """Measure fields (n, c, h, w) against ``real`` (m, c, h, w), physical units."""
        spectrum = log_spectrum_errors(fields, real, pde.grid.periodic)
        return cls(amplitude=amplitude(fields), energy=energy_distance(fields, real), spectrum=spectrum)


@dataclass(frozen=True, kw_only=True)
class DriftLimits:
    """Largest drift that counts as none."""

    guard_amplitude: float = 0.02
    """Largest relative change of a channel's standard deviation against the base model's on the same noise."""
    guard_energy: float = 1.05
    """Largest energy distance to held-out data over the base model's on the same noise."""
    guard_spectrum: float = 0.1
    """Largest rise of a channel's log spectrum error against held-out data (decades) over the base model's on the same noise."""

    def __post_init__(self) -> None:
        positive(self, "guard_amplitude", "guard_energy", "guard_spectrum")


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Change of the fidelity statistics from the base model's, on the same noise."""

    amplitude_ratio: float
    """Standard deviation over the base model's, of the channel that has changed most."""
    energy_ratio: float
    """Energy distance to the real fields over the base model's."""
    spectrum_rise: float
    """Rise of the log spectrum error, of the channel whose error has risen most, decades."""

    @classmethod
    def between(cls, tuned: FidelityStatistics, base: FidelityStatistics) -> "Drift":
        """Compare a tuned model's statistics with its base model's."""
        ratios = tuned.amplitude / base.amplitude
        return cls(
            amplitude_ratio=ratios[ratios.log().abs().argmax()].item(),
            energy_ratio=tuned.energy / base.energy,
            spectrum_rise=(tuned.spectrum - base.spectrum).max().item(),
        )

    def inside(self, limits: DriftLimits) -> bool:
        """Return whether the drift is within the limits."""
        return (
            abs(self.amplitude_ratio - 1) <= limits.guard_amplitude
            and self.energy_ratio <= limits.guard_energy
            and self.spectrum_rise <= limits.guard_spectrum
        )
