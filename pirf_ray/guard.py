"""The fidelity guard: while training goes on, samples from seeds of their own are compared with held-out solver data.

Tuned and base samples start from the same noise, so their difference is far less noisy than either. Outside the limits
no checkpoint is kept, and after ``guard_patience`` such evaluations in a row training ends at the best one inside.
"""

from dataclasses import dataclass
from typing import Any

import torch

from envs import seeding
from envs.denoising import DenoisingProcess, State
from envs.pdes import PDE
from pirf_ray.config import GuardSettings
from pirf_ray.evaluation.fidelity import amplitude, energy_distance, log_spectrum_errors
from pirf_ray.policy import Policy
from pirf_ray.rollout import advance, finish

GUARD_STREAM = "guard"
VALIDATION_STREAM = "validation"
GUARD_REAL = 1024
GUARD_BATCH = 64


@dataclass
class GuardState:
    """What the guard remembers; part of every checkpoint."""

    kept_update: int = 0
    kept_residual: float | None = None
    outside_in_a_row: int = 0
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """What the guard compares of a set of fields (n, c, h, w), physical units, with held-out real ones."""

    amplitude: torch.Tensor
    """Standard deviation of each channel (c,)."""
    energy: float
    """Energy distance to the real fields."""
    spectrum: torch.Tensor
    """Log spectrum error of each channel (c,), decades. Amplitude and energy distance do not see small scales smoothed away."""

    @classmethod
    def of(cls, fields: torch.Tensor, real: torch.Tensor, pde: PDE) -> "Likeness":
        spectrum = log_spectrum_errors(fields, real, pde.grid.periodic)
        return cls(amplitude=amplitude(fields), energy=energy_distance(fields, real), spectrum=spectrum)


@dataclass(frozen=True, kw_only=True)
class Departure:
    """How far a model has gone from the base model, on the same noise."""

    amplitude_ratio: float
    """Of the channel that has changed most."""
    energy_ratio: float
    spectrum_rise: float
    """Of the channel whose spectrum error has risen most, decades."""

    @classmethod
    def between(cls, tuned: Likeness, base: Likeness) -> "Departure":
        ratios = tuned.amplitude / base.amplitude
        return cls(
            amplitude_ratio=ratios[ratios.log().abs().argmax()].item(),
            energy_ratio=tuned.energy / base.energy,
            spectrum_rise=(tuned.spectrum - base.spectrum).max().item(),
        )

    def inside(self, limits: GuardSettings) -> bool:
        return (
            abs(self.amplitude_ratio - 1) <= limits.guard_amplitude
            and self.energy_ratio <= limits.guard_energy
            and self.spectrum_rise <= limits.guard_spectrum
        )


class Guard:
    """Measures a policy on fixed noise. The part of each sample that the base model makes is made once."""

    def __init__(
        self, settings: GuardSettings, pde: PDE, process: DenoisingProcess, policy: Policy, *, seed: int, operator: str
    ) -> None:
        self.settings, self.pde, self.process, self.operator = settings, pde, process, operator
        self.state = GuardState()
        self.real = pde.solve(seed, VALIDATION_STREAM, range(GUARD_REAL)).float()
        self.floor = pde.residual(self.real.double(), operator).mean().item()
        self._starts: list[State] = []
        base_outputs = []
        device = next(policy.base.parameters()).device
        shared = policy.switch_step(process)
        with torch.no_grad():
            for ids in seeding.chunks(settings.guard_samples, GUARD_BATCH):
                noise = seeding.normal(seed, GUARD_STREAM, ids, pde.shape).float().to(device)
                start = advance(process, policy.base_from, process.initial(noise), shared)
                self._starts.append(start)
                base_outputs.append(finish(process, policy.base_from, start).cpu())
        base = pde.normalizer.to_physical(torch.cat(base_outputs))
        self.base = Likeness.of(base, self.real, pde)
        self.base_residual = pde.residual(base.double(), operator).mean().item()

    @torch.no_grad()
    def measure(self, policy: Policy) -> dict[str, float]:
        """Figures of the policy on the guard's noise, and whether they are inside the limits."""
        x = torch.cat([finish(self.process, policy.denoisers(self.process), start).cpu() for start in self._starts])
        fields = self.pde.normalizer.to_physical(x)
        residual = self.pde.residual(fields.double(), self.operator)
        departure = Departure.between(Likeness.of(fields, self.real, self.pde), self.base)
        s = self.settings
        mean = residual.mean().item()
        # A residual below the floor is a hacked reward: it counts as outside.
        inside = departure.inside(s) and mean >= self.floor
        return {
            "guard/residual": mean,
            "guard/residual_median": residual.median().item(),
            "guard/over_floor": mean / self.floor,
            "guard/base_residual": self.base_residual,
            **{f"guard/{name}": value for name, value in vars(departure).items()},
            "guard/spectrum_limit": s.guard_spectrum,
            "guard/amplitude_limit": s.guard_amplitude,
            "guard/energy_limit": s.guard_energy,
            "guard/inside": float(inside),
        }

    def judge(self, update: int, figures: dict[str, float]) -> bool:
        """Take note of an evaluation; True if this update is to be kept: the best one inside the limits so far.

        A guard that only watches keeps the latest and stops nothing.
        """
        state = self.state
        if self.settings.guard == "watch":
            state.kept_update, state.kept_residual = update, figures["guard/residual"]
            return True
        if not figures["guard/inside"]:
            state.outside_in_a_row += 1
            state.stopped = state.outside_in_a_row >= self.settings.guard_patience
            return False
        state.outside_in_a_row = 0
        best = state.kept_residual is None or figures["guard/residual"] < state.kept_residual
        if best:
            state.kept_update, state.kept_residual = update, figures["guard/residual"]
        return best
