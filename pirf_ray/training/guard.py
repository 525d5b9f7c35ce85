"""The fidelity guard: during training, samples from seeds of their own are compared with held-out solver data.

Tuned and base samples start from the same noise, so their difference is far less noisy than either. Outside the limits
no checkpoint is kept. After ``guard_patience`` such evaluations in a row training ends with the best model inside them.
"""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch

from envs.common.checks import at_least
from envs.denoising import DenoisingProcess, State
from envs.numerics import seeding
from envs.pdes import PDE
from envs.pdes.base import require
from envs.rewards import Reward
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import NoiseAt, SampleBatch, advance, finish, step_noise
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
    """Score of the kept model: its residual, or minus its reward."""
    outside_in_a_row: int = 0
    stopped: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the state as a checkpoint's meta.json holds it."""
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class GuardMetrics:
    """Numbers of one guard evaluation."""

    residual: float | None
    """Mean residual of the rewarded operator, or of the PDE's default one. None for a PDE without operators."""
    residual_median: float | None
    """Median of the residual."""
    over_floor: float | None
    """Mean residual over that of held-out data."""
    base_residual: float | None
    """Mean residual of the base model on the same noise."""
    reward: float | None = None
    """Mean reward of a reward that is not a physics reward; the kept model is the best by it."""
    drift: Drift
    """Drift from the base model."""
    limits: DriftLimits
    """Limits of the drift."""
    inside: bool
    """Whether the model is inside the limits."""

    @property
    def score(self) -> float:
        """Return the number that the kept model has lowest: minus the reward, or the residual of a physics reward."""
        if self.reward is not None:
            return -self.reward
        return math.inf if self.residual is None else self.residual

    def to_json(self) -> dict[str, float]:
        """Return the numbers by the names of metrics.jsonl: ``guard/...``."""
        numbers = {
            "guard/residual": self.residual,
            "guard/residual_median": self.residual_median,
            "guard/over_floor": self.over_floor,
            "guard/base_residual": self.base_residual,
            "guard/reward": self.reward,
        }
        return {
            **{name: value for name, value in numbers.items() if value is not None},
            **{f"guard/{name}": value for name, value in vars(self.drift).items()},
            "guard/spectrum_limit": self.limits.guard_spectrum,
            "guard/amplitude_limit": self.limits.guard_amplitude,
            "guard/energy_limit": self.limits.guard_energy,
            "guard/inside": float(self.inside),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "GuardMetrics | None":
        """Read the numbers back from a record of metrics.jsonl; None if the update had no guard evaluation."""
        if "guard/inside" not in record:
            return None
        return cls(
            residual=record.get("guard/residual"),
            residual_median=record.get("guard/residual_median"),
            over_floor=record.get("guard/over_floor"),
            base_residual=record.get("guard/base_residual"),
            reward=record.get("guard/reward"),
            drift=Drift(**{f.name: record[f"guard/{f.name}"] for f in fields(Drift)}),
            limits=DriftLimits(
                guard_spectrum=record["guard/spectrum_limit"],
                guard_amplitude=record["guard/amplitude_limit"],
                guard_energy=record["guard/energy_limit"],
            ),
            inside=bool(record["guard/inside"]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Start:
    """What the policies share of a batch of samples."""

    state: State
    """State after the steps that the base model makes."""
    noise: torch.Tensor
    """First noise (b, c, h, w)."""
    noise_at: NoiseAt | None
    """Noise of stochastic steps."""


class Guard:
    """Measures a policy on fixed noise. The part of each sample that the base model makes is made once."""

    def __init__(
        self,
        settings: GuardSettings,
        pde: PDE,
        process: DenoisingProcess,
        policy: Policy,
        *,
        seed: int,
        operator: str = "",
        reward: Reward | None = None,
    ) -> None:
        """Sample the base model and solve held-out data.

        ``operator``: of the residual, by default the PDE's default one. ``reward``: a reward by which the kept model is chosen in
        place of the residual. ConfigError for a PDE without held-out data.
        """
        require(pde, "solve", "the guard", "give --guard off")
        self.settings, self.pde, self.process, self.seed = settings, pde, process, seed
        self.operator, self.reward = operator or pde.default_operator, reward
        self.limits = DriftLimits(**{f.name: getattr(settings, f.name) for f in fields(DriftLimits)})
        self.state = GuardState()
        available = pde.available(VALIDATION_STREAM)
        count = GUARD_REAL if available is None else min(GUARD_REAL, available)
        self.real = pde.solve(seed, VALIDATION_STREAM, range(count)).float()
        self.floor = self._residual(self.real).mean().item() if self.operator else None
        self._starts: list[_Start] = []
        base_outputs = []
        shared = policy.switch_step(process)
        with torch.no_grad():
            for ids in seeding.chunks(settings.guard_samples, GUARD_BATCH):
                noise = seeding.normal(seed, GUARD_STREAM, ids, pde.shape).float().to(policy.device)
                noise_at = step_noise(process, SampleBatch(seed=seed, stream=GUARD_STREAM, ids=ids), noise)
                start = advance(process, policy.base_from, process.initial(noise), shared, noise_at)
                self._starts.append(_Start(state=start, noise=noise, noise_at=noise_at))
                base_outputs.append(finish(process, policy.base_from, start, noise_at).cpu())
        base = pde.normalizer.to_physical(torch.cat(base_outputs))
        self.base = FidelityStatistics.of(base, self.real, pde)
        self.base_residual = self._residual(base).mean().item() if self.operator else None

    def _residual(self, physical: torch.Tensor) -> torch.Tensor:
        return self.pde.residual(physical.double(), self.operator)

    @torch.no_grad()
    def measure(self, policy: Policy) -> GuardMetrics:
        """Measure the policy on the guard's noise."""
        denoiser_from = policy.denoisers(self.process)
        starts = [(self._first_state(policy, start), start.noise_at) for start in self._starts]
        x = torch.cat([finish(self.process, denoiser_from, state, noise_at).cpu() for state, noise_at in starts])
        physical = self.pde.normalizer.to_physical(x)
        drift = Drift.between(FidelityStatistics.of(physical, self.real, self.pde), self.base)
        residual = self._residual(physical) if self.operator else None
        mean = None if residual is None else residual.mean().item()
        above = mean is None or self.floor is None or mean >= self.floor  # below the floor: a hacked reward, counts as outside
        return GuardMetrics(
            residual=mean,
            residual_median=None if residual is None else residual.median().item(),
            over_floor=None if mean is None or not self.floor else mean / self.floor,
            base_residual=self.base_residual,
            reward=None if self.reward is None else self.reward(physical).reward.mean().item(),
            drift=drift,
            limits=self.limits,
            inside=drift.inside(self.limits) and above,
        )

    def _first_state(self, policy: Policy, start: "_Start") -> State:
        """Return the state from which the policy's own steps begin. A policy that makes all steps may draw other first noise."""
        return start.state if start.state.step else policy.initial(self.process, start.noise)

    def keeps(self, update: int, metrics: GuardMetrics) -> bool:
        """Take note of an evaluation; return whether this update is to be kept: the best one inside the limits so far.

        A guard that only watches keeps the latest and stops nothing.
        """
        state = self.state
        if self.settings.guard == "watch":
            state.kept_update, state.kept_residual = update, metrics.score
            return True
        if not metrics.inside:
            state.outside_in_a_row += 1
            state.stopped = state.outside_in_a_row >= self.settings.guard_patience
            return False
        state.outside_in_a_row = 0
        best = state.kept_residual is None or metrics.score < state.kept_residual
        if best:
            state.kept_update, state.kept_residual = update, metrics.score
        return best
