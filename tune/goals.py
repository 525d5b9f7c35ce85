"""Goals of a sweep: how the metrics of a finished trial become values to minimize and constraints to keep."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pirf_ray.diffusion.model import BASE, TUNED
from pirf_ray.metrics.drift import DriftLimits
from pirf_ray.metrics.results import EvaluationResult

Goal = Literal["residual", "fidelity", "frontier"]
RESIDUAL, ENERGY = "log10 residual", "energy distance"
VALUES: dict[str, tuple[str, ...]] = {"residual": (RESIDUAL,), "fidelity": (ENERGY,), "frontier": (RESIDUAL, ENERGY)}
"""Values that each goal minimizes. The data floor is one number in a sweep, so residuals order trials like residuals over it."""
BROKEN = 1e9
"""The violation of a constraint whose metric is not finite."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Limits of the constraints, each relative to the base model on the same noise."""

    guard: DriftLimits
    """Limits of energy distance, amplitude and spectrum: the fidelity guard's own."""
    residual: float
    """Largest residual over the base model's (goal fidelity)."""


@dataclass(frozen=True, kw_only=True)
class TrialMetrics:
    """Metrics of a finished trial: of its kept model's samples, as ``generate`` makes them, on the noise of all trials.

    The names of the fields are stored in studies and stay.
    """

    residual: float
    """Mean square residual of the rewarded operator."""
    over_floor: float
    """Residual over the residual of real data."""
    below_floor: bool
    """Whether the residual is below that of real data."""
    base_residual: float
    """Residual of the base model."""
    energy: float
    """Energy distance to held-out data."""
    energy_ratio: float
    """Energy distance over the base model's."""
    amplitude_ratio: float
    """Standard deviation over the base model's, of the channel that has changed most."""
    spectrum_rise: float
    """Log spectrum error over all channels minus the base model's, decades."""
    resolve: float
    """Median re-solve error."""

    @classmethod
    def of(cls, result: EvaluationResult) -> "TrialMetrics":
        """Take the metrics from the evaluation of a run."""
        base, tuned = result[BASE], result[TUNED]
        residual = tuned.residuals[result.rewarded_operator]
        before, after = base.fidelity, tuned.fidelity
        ratios = [after.amplitude_ratios[channel] / before.amplitude_ratios[channel] for channel in result.channels]
        return cls(
            residual=residual.mean,
            over_floor=residual.over_floor,
            below_floor=residual.below_floor,
            base_residual=base.residuals[result.rewarded_operator].mean,
            energy=after.energy_distance,
            energy_ratio=after.energy_distance / before.energy_distance,
            amplitude_ratio=max(ratios, key=_distance_from_one),
            spectrum_rise=after.log_spectrum_error - before.log_spectrum_error,
            resolve=math.nan if tuned.resolve_median is None else tuned.resolve_median,
        )

    @property
    def residual_ratio(self) -> float:
        """Return the residual over the base model's."""
        return self.residual / self.base_residual

    def values(self, goal: Goal) -> tuple[float, ...]:
        """Return the values that the goal minimizes; inf if a sample is not finite."""
        known = {RESIDUAL: math.log10(self.residual) if self.residual > 0 else math.inf, ENERGY: self.energy}
        return tuple(known[name] if math.isfinite(known[name]) else math.inf for name in VALUES[goal])

    def constraints(self, goal: Goal, limits: Limits) -> dict[str, float]:
        """Return the violation of each constraint; a constraint is kept at 0 or below.

        A residual below the data floor violates every goal: its reward is hacked.
        """
        guard = limits.guard
        by_goal = {
            "residual": {
                "energy distance": self.energy_ratio - guard.guard_energy,
                "amplitude": abs(self.amplitude_ratio - 1) - guard.guard_amplitude,
                "spectrum": self.spectrum_rise - guard.guard_spectrum,
            },
            "fidelity": {"residual": self.residual_ratio - limits.residual},
            "frontier": {},
        }
        found = {"data floor": 1.0 if self.below_floor else 0.0, **by_goal[goal]}
        return {name: value if math.isfinite(value) else BROKEN for name, value in found.items()}

    def to_json(self) -> dict[str, Any]:
        """Return the metrics by name. A value that is not finite becomes text, since JSON has no inf."""
        return {name: value if math.isfinite(value) else str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "TrialMetrics":
        """Read the metrics back. TypeError names a metric that is missing or unknown."""
        values: dict[str, Any] = {name: value if isinstance(value, bool) else float(value) for name, value in data.items()}
        return cls(**values)


def kept(constraints: Mapping[str, float]) -> bool:
    """Return whether every constraint is kept."""
    return all(value <= 0 for value in constraints.values())


def _distance_from_one(ratio: float) -> float:
    return abs(math.log(ratio)) if ratio > 0 else math.inf
