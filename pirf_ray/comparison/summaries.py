"""What a benchmark's report shows, typed: methods by PDE and N, their metrics over seeds, costs and ranks.

``BenchmarkReport.to_json`` is benchmark.json:
``envs[env]["steps"]["20"]["methods"][method]["figures"]["residual/consistent/mean"] = {mean, values, interval}``.
Metrics have the names of ``SetMetrics.to_json``.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from pirf_ray.comparison.cells import PDENames, Spectra, TrialCell
from pirf_ray.comparison.plan import Plan
from pirf_ray.methods import Settings
from pirf_ray.metrics.cost import Cost
from pirf_ray.metrics.results import SetMetrics

GUARD = 1.1
"""Largest energy distance over the base's on the same noise, inside of which methods are ranked."""
INTERVAL = "_interval"
"""Ending of the JSON name of a number's interval."""
Interval = tuple[float, float]
Value = Callable[[SetMetrics], float | None]
"""A number of a set's metrics; None if the set does not have it."""


def mean_residual(operator: str) -> Value:
    """Return the accessor of an operator's mean residual."""
    return lambda metrics: metrics.residuals[operator].mean


def resolve_error(metrics: SetMetrics) -> float | None:
    """Return the median re-solve error. None without a solver."""
    return metrics.resolve_median


@dataclass(frozen=True, kw_only=True)
class Summary:
    """One number over seeds."""

    mean: float
    values: tuple[float, ...]
    """Values by seed."""
    interval: Interval | None = None
    """95% interval of the mean; None if there is none."""

    def to_json(self) -> dict[str, Any]:
        """Return the numbers by their names."""
        return {"mean": self.mean, "values": list(self.values), "interval": list(self.interval) if self.interval else None}


def over_seeds(values: Sequence[float], *, over_samples: Interval | None = None) -> Summary:
    """Return the mean over seeds; from two finite values on with Student's 95% interval.

    ``over_samples``: the interval of a single value.
    """
    mean = float(np.mean(values)) if values else math.nan
    interval = over_samples if len(values) == 1 else None
    if len(values) > 1 and all(map(math.isfinite, values)):
        half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
        interval = (mean - half, mean + half)
    return Summary(mean=mean, values=tuple(map(float, values)), interval=interval)


def mean_cost(costs: Sequence[Cost]) -> Cost:
    """Return the mean of several costs."""
    return sum(costs, Cost()).per(len(costs))


def _values(sets: Sequence[SetMetrics], value: Value) -> list[float] | None:
    """Return the value of each set; None if a set does not have it."""
    found = [number for metrics in sets if (number := value(metrics)) is not None]
    return found if len(found) == len(sets) else None


def _numbers(record: dict[str, Any]) -> list[str]:
    """Return the names of a set's numbers; intervals and yes-or-no values are none."""
    return [name for name, value in record.items() if isinstance(value, int | float) and not isinstance(value, bool)]


@dataclass(frozen=True, kw_only=True)
class MethodEntry:
    """One method at one N."""

    sets: tuple[SetMetrics, ...]
    """Metrics by seed."""
    residual: Summary
    """Mean residual of the PDE's default operator."""
    residual_ratio: Summary
    """Mean residual over the base model's with the same seed."""
    energy_ratio: Summary
    """Energy distance over the base model's with the same seed."""
    below_floor: bool
    """Whether the residual of a seed is below real data's."""
    cost: Cost
    """Mean cost per sample."""
    spectra: Spectra
    """Spectra of the first seed's samples."""

    @property
    def within_guard(self) -> bool:
        """Return whether the samples are as close to real data as the base model's, up to the limit."""
        return self.energy_ratio.mean <= GUARD

    def summary(self, value: Value) -> Summary | None:
        """Return a number over seeds; None if a seed does not have it."""
        values = _values(self.sets, value)
        return None if values is None else over_seeds(values)

    def to_json(self) -> dict[str, Any]:
        """Return the entry of benchmark.json."""
        ratios = {"residual_ratio": self.residual_ratio, "energy_ratio": self.energy_ratio}
        return {
            "figures": {name: summary.to_json() for name, summary in {**self._summaries(), **ratios}.items()},
            "cost": dict(vars(self.cost)),
            "seeds": len(self.sets),
            "below_floor": self.below_floor,
            "within_guard": self.within_guard,
            "spectra": dict(vars(self.spectra)),
        }

    def _summaries(self) -> dict[str, Summary]:
        """Return every number over seeds by its JSON name; of a single seed with its interval over samples."""
        records = [metrics.to_json() for metrics in self.sets]
        intervals = {name.removesuffix(INTERVAL): tuple(v) for name, v in records[0].items() if name.endswith(INTERVAL)}
        return {
            name: over_seeds([record[name] for record in records], over_samples=intervals.get(name))
            for name in _numbers(records[0])
        }


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """Every method at one N."""

    methods: dict[str, MethodEntry]
    data: tuple[SetMetrics, ...]
    """Metrics of real data, measured beside each evaluation."""
    data_spectra: Spectra
    """Spectra of real data."""
    nfe: int
    samples: int
    """Samples of each method and seed."""
    real: int
    """Held-out fields that they are compared with."""
    ranks: dict[str, int]
    """Ranks of the methods inside the guard and not below the floor, from 1."""

    @property
    def first(self) -> list[str]:
        """Return the methods of rank 1."""
        return [method for method, rank in self.ranks.items() if rank == 1]

    def data_mean(self, value: Value) -> float | None:
        """Return the mean of a number of real data; None if an evaluation does not have it."""
        values = _values(self.data, value)
        return None if values is None else float(np.mean(values))

    def to_json(self) -> dict[str, Any]:
        """Return the part of benchmark.json."""
        records = [metrics.to_json() for metrics in self.data]
        return {
            "methods": {name: entry.to_json() for name, entry in self.methods.items()},
            "data": {name: float(np.mean([record[name] for record in records])) for name in _numbers(records[0])},
            "data_spectra": dict(vars(self.data_spectra)),
            "nfe": self.nfe,
            "samples": self.samples,
            "real": self.real,
            "ranks": self.ranks,
            "first": self.first,
        }


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """Trainings of one method."""

    settings: Settings
    budget: float | None
    cost: Cost
    """Mean cost."""

    def to_json(self) -> dict[str, Any]:
        """Return the part of benchmark.json."""
        return {"settings": self.settings, "budget": self.budget, "cost": dict(vars(self.cost))}


@dataclass(frozen=True, kw_only=True)
class EnvReport:
    """Every method on one PDE."""

    names: PDENames
    """Names of what is measured."""
    steps: dict[int, StepReport]
    """Reports by N."""
    training: dict[str, TrainingReport]
    """Trainings by method."""
    trials: dict[str, tuple[TrialCell, ...]]
    """Trials by method."""

    def to_json(self) -> dict[str, Any]:
        """Return the part of benchmark.json."""
        return {
            **vars(self.names),
            "steps": {str(n): step.to_json() for n, step in self.steps.items()},
            "training": {method: training.to_json() for method, training in self.training.items()},
            "trials": {method: [_trial_json(cell) for cell in cells] for method, cells in self.trials.items()},
        }


def _trial_json(cell: TrialCell) -> dict[str, Any]:
    return {"settings": cell.settings, "score": cell.score, **(cell.metrics.to_json() if cell.metrics else {})}


@dataclass(frozen=True, kw_only=True)
class Header:
    """How a benchmark was made, and what it announces."""

    command: str
    date: str
    machine: str
    versions: dict[str, str]
    """Versions of the libraries."""
    plan: Plan
    envs: list[str]
    methods: list[str]
    num_steps: list[int]
    """N at which every method is evaluated."""
    parameters: dict[str, dict[str, float]]
    """Parameters of each PDE."""
    seeds: dict[str, int]
    """Number of seeds of each method."""

    def origin(self) -> list[str]:
        """Return command, date, machine and versions."""
        versions = ", ".join(f"{name} {version}" for name, version in self.versions.items())
        return [self.command, self.date, self.machine, versions]

    def to_json(self) -> dict[str, Any]:
        """Return the header of benchmark.json."""
        return {**vars(self), "plan": self.plan.to_json()}


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """Everything that the report shows."""

    header: Header
    titles: dict[str, str]
    """Names of the methods in tables."""
    sources: dict[str, str]
    """Papers of the methods."""
    envs: dict[str, EnvReport]
    """PDEs with at least one evaluation."""
    missing: list[str]
    """What the header announces and no cell holds."""

    def to_json(self) -> dict[str, Any]:
        """Return benchmark.json."""
        return {
            "header": self.header.to_json(),
            "guard": GUARD,
            "titles": self.titles,
            "sources": self.sources,
            "envs": {env: report.to_json() for env, report in self.envs.items()},
            "missing": self.missing,
        }
