"""The fidelity guard: during training, samples from seeds of their own are compared with held-out solver data.

Tuned and base samples start from the same noise, so their difference is far less noisy than either. Outside the limits
no checkpoint is kept. After ``guard_patience`` such evaluations in a row training ends with the best model inside them.
"""

from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from envs.common.checks import at_least
from envs.denoising import DenoisingProcess, State
from envs.numerics import seeding
from envs.pdes import PDE
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import advance, finish
from pirf_ray.metrics.drift import Drift, DriftLimits, FidelityStatistics

GUARD_STREAM = "guard"
VALIDATION_STREAM = "validation"
GUARD_REAL = 1024
GUARD_BATCH = 64


@dataclass(frozen=True, kw_only=True)
class GuardSettings(DriftLimits):
    """The fidelity guard: samples from seeds of their own against held-out solver data, during training."""

    guard: Literal["enforce", "watch", "off"] = "enforce"
    """enforce: the best model inside the limits is kept, and training ends outside them. watch: measured, the last model is kept.
    off: not measured, the last model is kept."""
    guard_samples: int = 64
    """Samples of a guard evaluation."""
    guard_every: int = 10
    """Updates between guard evaluations."""
    guard_patience: int = 2
    """Guard evaluations in a row outside the limits that end the training."""

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, 2, "guard_samples")
        at_least(self, 1, "guard_every", "guard_patience")


@dataclass
class GuardState:
    """What the guard remembers; part of every checkpoint."""

    kept_update: int = 0
    kept_residual: float | None = None
    outside_in_a_row: int = 0
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the state as a checkpoint's meta.json holds it."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class GuardMetrics:
    """Numbers of one guard evaluation."""

    residual: float
    """Mean residual of the rewarded operator."""
    residual_median: float
    """Median of the residual."""
    over_floor: float
    """Mean residual over that of held-out data."""
    base_residual: float
    """Mean residual of the base model on the same noise."""
    drift: Drift
    """Drift from the base model."""
    limits: DriftLimits
    """Limits of the drift."""
    inside: bool
    """Whether the model is inside the limits."""

    def to_json(self) -> dict[str, float]:
        """Return the numbers by the names of metrics.jsonl: ``guard/...``."""
        return {
            "guard/residual": self.residual,
            "guard/residual_median": self.residual_median,
            "guard/over_floor": self.over_floor,
            "guard/base_residual": self.base_residual,
            **{f"guard/{name}": value for name, value in vars(self.drift).items()},
            "guard/spectrum_limit": self.limits.guard_spectrum,
            "guard/amplitude_limit": self.limits.guard_amplitude,
            "guard/energy_limit": self.limits.guard_energy,
            "guard/inside": float(self.inside),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "GuardMetrics | None":
        """Read the numbers back from a record of metrics.jsonl; None if the update had no guard evaluation."""
        if "guard/residual" not in record:
            return None
        return cls(
            residual=record["guard/residual"],
            residual_median=record["guard/residual_median"],
            over_floor=record["guard/over_floor"],
            base_residual=record["guard/base_residual"],
            drift=Drift(**{f.name: record[f"guard/{f.name}"] for f in fields(Drift)}),
            limits=DriftLimits(
                guard_spectrum=record["guard/spectrum_limit"],
                guard_amplitude=record["guard/amplitude_limit"],
                guard_energy=record["guard/energy_limit"],
            ),
            inside=bool(record["guard/inside"]),
        )


class Guard:
    """Measures a policy on fixed noise. The part of each sample that the base model makes is made once."""

    def __init__(
        self, settings: GuardSettings, pde: PDE, process: DenoisingProcess, policy: Policy, *, seed: int, operator: str
    ) -> None:
        self.settings, self.pde, self.process, self.operator = settings, pde, process, operator
        self.limits = DriftLimits(**{f.name: getattr(settings, f.name) for f in fields(DriftLimits)})
        self.state = GuardState()
        self.real = pde.solve(seed, VALIDATION_STREAM, range(GUARD_REAL)).float()
        self.floor = pde.residual(self.real.double(), operator).mean().item()
        self._starts: list[State] = []
        base_outputs = []
        shared = policy.switch_step(process)
        with torch.no_grad():
            for ids in seeding.chunks(settings.guard_samples, GUARD_BATCH):
                noise = seeding.normal(seed, GUARD_STREAM, ids, pde.shape).float().to(policy.device)
                start = advance(process, policy.base_from, process.initial(noise), shared)
                self._starts.append(start)
                base_outputs.append(finish(process, policy.base_from, start).cpu())
        base = pde.normalizer.to_physical(torch.cat(base_outputs))
        self.base = FidelityStatistics.of(base, self.real, pde)
        self.base_residual = pde.residual(base.double(), operator).mean().item()

    @torch.no_grad()
    def measure(self, policy: Policy) -> GuardMetrics:
        """Measure the policy on the guard's noise."""
        x = torch.cat([finish(self.process, policy.denoisers(self.process), start).cpu() for start in self._starts])
        fields_ = self.pde.normalizer.to_physical(x)
        residual = self.pde.residual(fields_.double(), self.operator)
        drift = Drift.between(FidelityStatistics.of(fields_, self.real, self.pde), self.base)
        mean = residual.mean().item()
        return GuardMetrics(
            residual=mean,
            residual_median=residual.median().item(),
            over_floor=mean / self.floor,
            base_residual=self.base_residual,
            drift=drift,
            limits=self.limits,
            inside=drift.inside(self.limits) and mean >= self.floor,  # below the floor: a hacked reward, counts as outside
        )

    def keeps(self, update: int, metrics: GuardMetrics) -> bool:
        """Take note of an evaluation; return whether this update is to be kept: the best one inside the limits so far.

        A guard that only watches keeps the latest and stops nothing.
        """
        state = self.state
        if self.settings.guard == "watch":
            state.kept_update, state.kept_residual = update, metrics.residual
            return True
        if not metrics.inside:
            state.outside_in_a_row += 1
            state.stopped = state.outside_in_a_row >= self.settings.guard_patience
            return False
        state.outside_in_a_row = 0
        best = state.kept_residual is None or metrics.residual < state.kept_residual
        if best:
            state.kept_update, state.kept_residual = update, metrics.residual
        return best
