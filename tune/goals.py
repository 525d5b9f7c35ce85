"""What a sweep is after: how a finished run's figures become values to minimize and constraints to keep."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pirf_ray.config import ConfigError, GuardSettings

Goal = Literal["residual", "fidelity", "frontier"]
VALUES: dict[str, tuple[str, ...]] = {
    "residual": ("log10 residual",),
    "fidelity": ("energy distance",),
    "frontier": ("log10 residual", "energy distance"),
}
"""What each goal minimizes. Within a sweep the data floor is one number: the residual orders runs as its ratio to it does."""
BROKEN = 1e9
"""The violation of what is not finite."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Constraints, each relative to the base model on the same noise."""

    guard: GuardSettings
    """Energy distance, amplitude and spectrum: the fidelity guard's own."""
    residual: float
    """Largest residual over the base model's (goal fidelity)."""

    def __post_init__(self) -> None:
        if not self.residual > 0:
            raise ConfigError(f"--residual-limit must be positive, got {self.residual}")


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a finished run is judged by: its kept model's samples, as ``generate`` gives them, on the trials' noise."""

    residual: float
    """Mean square residual of the default operator."""
    over_floor: float
    below_floor: bool
    base_residual: float
    energy: float
    """Energy distance to held-out data."""
    energy_ratio: float
    """... over the base model's."""
    amplitude_ratio: float
    """Of the channel whose standard deviation changed most against the base model's."""
    spectrum_rise: float
    """Rise of the log spectrum error, over all channels, over the base model's, decades."""
    resolve: float
    """Median re-solve error."""

    @classmethod
    def of(cls, result: Mapping[str, Any]) -> "Figures":
        """From a run's result.json."""
        base, tuned = result["base"], result["tuned"]
        operator = result.get("rewarded_operator") or result["default_operator"]
        key = f"residual/{operator}/mean"
        changes = [tuned[f"fidelity/amplitude_ratio/{c}"] / base[f"fidelity/amplitude_ratio/{c}"] for c in result["channels"]]
        return cls(
            residual=tuned[key],
            over_floor=tuned[f"residual/{operator}/over_floor"],
            below_floor=tuned[f"residual/{operator}/below_floor"],
            base_residual=base[key],
            energy=tuned["fidelity/energy_distance"],
            energy_ratio=tuned["fidelity/energy_distance"] / base["fidelity/energy_distance"],
            amplitude_ratio=max(changes, key=lambda ratio: abs(math.log(ratio)) if ratio > 0 else math.inf),
            spectrum_rise=tuned["fidelity/log_spectrum_error"] - base["fidelity/log_spectrum_error"],
            resolve=tuned["resolve/median"],
        )

    def values(self, goal: Goal) -> tuple[float, ...]:
        """What is minimized; inf where a sample is not finite."""
        known = {"log10 residual": math.log10(self.residual) if self.residual > 0 else math.inf, "energy distance": self.energy}
        return tuple(known[name] if math.isfinite(known[name]) else math.inf for name in VALUES[goal])

    def constraints(self, goal: Goal, limits: Limits) -> dict[str, float]:
        """Each at most 0 where it is kept. A residual under the data floor is a hacked reward, never a good one."""
        guard = limits.guard
        by_goal = {
            "residual": {
                "energy distance": self.energy_ratio - guard.guard_energy,
                "amplitude": abs(self.amplitude_ratio - 1) - guard.guard_amplitude,
                "spectrum": self.spectrum_rise - guard.guard_spectrum,
            },
            "fidelity": {"residual": self.residual / self.base_residual - limits.residual},
            "frontier": {},
        }
        found = {"data floor": 1.0 if self.below_floor else 0.0, **by_goal[goal]}
        return {name: value if math.isfinite(value) else BROKEN for name, value in found.items()}

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def kept(constraints: Mapping[str, float]) -> bool:
    return all(value <= 0 for value in constraints.values())
