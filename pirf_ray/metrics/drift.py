"""The drift of a tuned model from its base model, in statistics that a hacked reward changes."""

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
    """Log spectrum error of each channel (c,), decades. Only the spectrum shows that small scales were smoothed away."""

    @classmethod
    def of(cls, fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> "FidelityStatistics":
        """Return the statistics of fields (n, c, h, w) against ``real`` (m, c, h, w), physical units."""
        spectrum = log_spectrum_errors(fields, real, pde.grid.periodic)
        return cls(amplitude=amplitude(fields), energy=energy_distance(fields, real), spectrum=spectrum)


@dataclass(frozen=True, kw_only=True)
class DriftLimits:
    """Limits of the drift that the guard allows."""

    guard_amplitude: float = 0.02
    """Largest relative change of a channel's standard deviation from the base model's on the same noise."""
    guard_energy: float = 1.05
    """Largest energy distance to held-out data, divided by the base model's on the same noise."""
    guard_spectrum: float = 0.1
    """Largest rise of a channel's log spectrum error (decades) above the base model's on the same noise."""

    def __post_init__(self) -> None:
        positive(self, "guard_amplitude", "guard_energy", "guard_spectrum")


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Change of the fidelity statistics from the base model's on the same noise."""

    amplitude_ratio: float
    """Standard deviation divided by the base model's, for the channel with the largest change."""
    energy_ratio: float
    """Energy distance to real fields divided by the base model's."""
    spectrum_rise: float
    """Rise of the log spectrum error above the base model's (decades), for the channel with the largest rise."""

    @classmethod
    def between(cls, tuned: FidelityStatistics, base: FidelityStatistics) -> "Drift":
        """Return the drift of a tuned model's statistics from its base model's."""
        ratios = tuned.amplitude / base.amplitude
        return cls(
            amplitude_ratio=ratios[ratios.log().abs().argmax()].item(),
            energy_ratio=tuned.energy / base.energy,
            spectrum_rise=(tuned.spectrum - base.spectrum).max().item(),
        )

    def inside(self, limits: DriftLimits) -> bool:
        """Return whether the drift is inside the limits."""
        return (
            abs(self.amplitude_ratio - 1) <= limits.guard_amplitude
            and self.energy_ratio <= limits.guard_energy
            and self.spectrum_rise <= limits.guard_spectrum
        )
