"""The typed results of an evaluation, and their names in JSON files.

``EvaluationResult.to_json`` returns ``{set: {name: number}}``. The names are ``residual/<operator>/mean``,
``condition/<name>/mean``, ``resolve/median``, ``fidelity/energy_distance`` and so on. docs/reference/metrics.md has them all.
The names of what a PDE leaves out are absent.
"""

from dataclasses import dataclass, field, fields
from typing import Any

DATA = "data"
"""Name of the set of real fields that is evaluated like a generated set."""
STATISTICS = ("mean", "median", "mean_interval", "median_interval")
"""Fields of ``Estimate``."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Mean and median over samples, each with its 95% bootstrap interval."""

    mean: float
    """Mean over samples."""
    median: float
    """Median over samples."""
    mean_interval: tuple[float, float]
    """95% bootstrap interval of the mean."""
    median_interval: tuple[float, float]
    """95% bootstrap interval of the median."""


@dataclass(frozen=True, kw_only=True)
class ResidualMetrics(Estimate):
    """Mean square residual of one operator."""

    over_floor: float
    """Mean divided by the floor, the mean residual of real data."""
    below_floor: bool
    """Whether the whole interval of the mean lies below the interval of the floor."""
    noise_equivalent: float
    """Standard deviation of the white noise that gives real data this residual, relative to each channel's standard deviation."""


@dataclass(frozen=True, kw_only=True)
class FidelityMetrics:
    """Closeness of a set of fields to held-out real fields; see pirf_ray.metrics.distances, spectra and statistics."""

    energy_distance: float
    """Energy distance to the real fields (V-statistic)."""
    energy_distance_unbiased: float
    """Unbiased squared energy distance to the real fields (U-statistic)."""
    energy_distance_same_law: float
    """Energy distance of two sets of these sizes with the same law."""
    energy_distance_ratio_to_data: float
    """Energy distance divided by the energy distance of a second held-out set."""
    marginal_energy_distance: float | None = None
    """Energy distance of the marginal, whose law is known: coefficient, source or initial condition. None without a marginal."""
    log_spectrum_error: float
    """Root mean square error of the log spectrum, decades."""
    mean_field_error: float
    """Mean square error of the mean field (MMSE)."""
    std_field_error: float
    """Mean square error of the standard-deviation field (SMSE)."""
    diversity_ratio: float
    """Mean distance of two samples divided by the mean distance of two real fields."""
    nearest_distance: float
    """Median distance of a sample to the nearest real field."""
    nearest_training_distance: float | None = None
    """Median distance of a sample to the nearest training field. None if the training data are unknown."""
    amplitude_ratio: float
    """Standard deviation divided by real fields' standard deviation, for the channel whose ratio is farthest from 1."""
    high_wavenumber_ratio: float
    """Energy above half of Nyquist divided by real fields' energy there, for the channel whose ratio is farthest from 1."""
    amplitude_ratios: dict[str, float]
    """Standard deviation of each channel divided by real fields' standard deviation."""
    high_wavenumber_ratios: dict[str, float]
    """Energy of each channel above half of Nyquist divided by real fields' energy there."""


RATIOS = {"amplitude_ratios": "amplitude_ratio", "high_wavenumber_ratios": "high_wavenumber_ratio"}
"""Fields of ``FidelityMetrics`` with a number per channel, and their names in JSON."""
SCALARS = tuple(f.name for f in fields(FidelityMetrics) if f.name not in RATIOS)
"""Fields of ``FidelityMetrics`` with one number."""
METRIC = "metric/"
"""Beginning of the JSON names of ``SetMetrics.named``."""
MAY_LACK = ("marginal_energy_distance", "nearest_training_distance")
"""Fields of ``FidelityMetrics`` that may be None."""


@dataclass(frozen=True, kw_only=True)
class SetMetrics:
    """All metrics of one set of samples."""

    num_samples: int
    """Number of samples."""
    num_nonfinite: int
    """Number of samples with a value that is not finite."""
    residuals: dict[str, ResidualMetrics]
    """Residuals by operator. Empty for a PDE without operators."""
    conditions: dict[str, Estimate]
    """Violations by condition."""
    resolve: Estimate | None = None
    """Re-solve error: the relative L2 error against the solution solved from the sample's own input. None without a solver."""
    resolve_trivial: float | None = None
    """Median re-solve error of the trivial competitor. None without a trivial competitor."""
    fidelity: FidelityMetrics
    """Closeness to held-out real fields."""
    named: dict[str, float] = field(default_factory=dict)
    """Metrics of ``evaluate --metrics`` by name, and as ``reward`` the mean reward of a run whose reward is no physics reward."""

    @property
    def resolve_median(self) -> float | None:
        """Return the median re-solve error. None without a solver."""
        return None if self.resolve is None else self.resolve.median

    def to_json(self) -> dict[str, Any]:
        """Return every number by its JSON name."""
        made: dict[str, Any] = {"num_samples": self.num_samples, "num_nonfinite": self.num_nonfinite}
        for prefix, estimate in self._estimates().items():
            made |= {f"{prefix}/{name}": _plain(value) for name, value in vars(estimate).items()}
        if self.resolve_trivial is not None:
            made["resolve/trivial_median"] = self.resolve_trivial
        for name in SCALARS:
            if (value := getattr(self.fidelity, name)) is not None:
                made[f"fidelity/{name}"] = value
        for name, single in RATIOS.items():
            made |= {f"fidelity/{single}/{channel}": v for channel, v in getattr(self.fidelity, name).items()}
        return made | {f"{METRIC}{name}": value for name, value in self.named.items()}

    def _estimates(self) -> dict[str, Estimate]:
        residuals = {f"residual/{name}": r for name, r in self.residuals.items()}
        conditions = {f"condition/{name}": c for name, c in self.conditions.items()}
        return {**residuals, **conditions, **({} if self.resolve is None else {"resolve": self.resolve})}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "SetMetrics":
        """Read the numbers back. KeyError names a number that is missing."""
        ratios = {
            name: {key.rpartition("/")[2]: v for key, v in data.items() if key.startswith(f"fidelity/{single}/")}
            for name, single in RATIOS.items()
        }
        scalars = {name: data[f"fidelity/{name}"] for name in SCALARS if name not in MAY_LACK}
        scalars |= {name: data.get(f"fidelity/{name}") for name in MAY_LACK}
        resolved = any(f"resolve/{name}" in data for name in STATISTICS)
        return cls(
            num_samples=data["num_samples"],
            num_nonfinite=data["num_nonfinite"],
            residuals={
                name: ResidualMetrics(
                    **_statistics(data, f"residual/{name}"),
                    over_floor=data[f"residual/{name}/over_floor"],
                    below_floor=data[f"residual/{name}/below_floor"],
                    noise_equivalent=data[f"residual/{name}/noise_equivalent"],
                )
                for name in _names(data, "residual")
            },
            conditions={name: Estimate(**_statistics(data, f"condition/{name}")) for name in _names(data, "condition")},
            resolve=Estimate(**_statistics(data, "resolve")) if resolved else None,
            resolve_trivial=data.get("resolve/trivial_median"),
            fidelity=FidelityMetrics(
                **scalars,
                amplitude_ratios=ratios["amplitude_ratios"],
                high_wavenumber_ratios=ratios["high_wavenumber_ratios"],
            ),
            named={key.removeprefix(METRIC): value for key, value in data.items() if key.startswith(METRIC)},
        )


def _names(data: dict[str, Any], group: str) -> list[str]:
    """Return the names of the operators or conditions in a flat record, in order."""
    return [key.split("/")[1] for key in data if key.startswith(f"{group}/") and key.endswith("/mean")]


def _statistics(data: dict[str, Any], prefix: str) -> dict[str, Any]:
    values = {name: data[f"{prefix}/{name}"] for name in STATISTICS}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, kw_only=True)
class SamplerRecord:
    """Settings with which the samples of an evaluation were made."""

    num_steps: int
    """Number of the sampler's steps."""
    solver: str
    """Solver of the sampler's steps."""
    nfe: int
    """Network evaluations per sample."""
    corrections: int = 0
    """Number of the finisher's steps."""


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Metrics of every set of an evaluation, and of real data under ``data``."""

    env_id: str
    """Env id of the PDE."""
    resolution: int
    """Rows and columns of the fields."""
    operators: list[str]
    """Residual operators: the default, the unrewarded, then the others."""
    default_operator: str
    """Residual operator that the PDE rewards by default."""
    unrewarded_operator: str
    """Residual operator of the unrewarded check."""
    rewarded_operator: str
    """Residual operator of the reward."""
    conditions: list[str]
    """Conditions of the PDE."""
    channels: list[str]
    """Channels of the fields."""
    num_samples: int
    """Number of samples per set."""
    num_real: int
    """Number of held-out fields that every set is compared with."""
    sets: dict[str, SetMetrics]
    """Metrics by set."""
    sampler: SamplerRecord | None = None
    """Settings of the sampler. None if the samples are not from a model."""
    seed: int | None = None
    """Seed of the samples and of the held-out fields."""
    kept_update: int | None = None
    """Update of a run's kept model."""
    ending: str | None = None
    """End of the run, as a sentence."""

    @property
    def data(self) -> SetMetrics:
        """Return the metrics of real data."""
        return self.sets[DATA]

    def __getitem__(self, name: str) -> SetMetrics:
        """Return the metrics of a set."""
        return self.sets[name]

    def to_json(self) -> dict[str, Any]:
        """Return the result as result.json holds it: the description of the evaluation, then each set by name."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("sets", "sampler")}
        made = {name: value for name, value in plain.items() if value is not None}
        if self.sampler is not None:
            made["sampler"] = vars(self.sampler)
        return {**made, "sets": list(self.sets), **{name: metrics.to_json() for name, metrics in self.sets.items()}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "EvaluationResult":
        """Read the result back. KeyError or TypeError if the data are not a result."""
        known = {f.name for f in fields(cls)} - {"sets", "sampler"}
        return cls(
            **{name: value for name, value in data.items() if name in known},
            sampler=SamplerRecord(**data["sampler"]) if "sampler" in data else None,
            sets={name: SetMetrics.from_json(data[name]) for name in data["sets"]},
        )
