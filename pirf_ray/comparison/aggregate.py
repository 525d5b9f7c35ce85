"""Finished cells to one report: means over seeds, ratios to the base model, ranks, and what is missing."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from pirf_ray.comparison.cells import Cell, EvaluationCell, TrainingCell, TrialCell
from pirf_ray.comparison.summaries import (
    BenchmarkReport,
    EnvReport,
    Header,
    MethodEntry,
    StepReport,
    TrainingReport,
    mean_cost,
    over_seeds,
)
from pirf_ray.methods import METHODS

AT_FLOOR = 1.05
"""A residual up to so many times real data's has nothing left to gain: such methods are equal."""
EQUAL = 1.01
"""Ratio of residuals under which two methods are equal too: over three seeds their means are known to a tenth at best."""


def title_of(method: str) -> str:
    """Return a method's name in tables."""
    known = METHODS.get(method.rpartition(":")[2])
    return known.title if known else method


def source_of(method: str) -> str:
    """Return a method's paper."""
    known = METHODS.get(method.rpartition(":")[2])
    return known.paper if known else ""


def aggregate(cells: Sequence[Cell], header: Header) -> BenchmarkReport:
    """Return everything that the report shows. It lists as missing what the header announces and no cell holds."""
    evaluated = [c for c in cells if isinstance(c, EvaluationCell)]
    trained = [c for c in cells if isinstance(c, TrainingCell)]
    tried = [c for c in cells if isinstance(c, TrialCell)]
    envs = {}
    for env in header.envs:
        own = [c for c in evaluated if c.env == env and c.method in header.methods]
        if own:
            envs[env] = EnvReport(
                names=own[0].names,
                steps=_steps(own, header.methods),
                training=_training([c for c in trained if c.env == env and not c.failed], header.methods),
                trials={m: tuple(c for c in tried if (c.env, c.method) == (env, m)) for m in header.methods},
            )
    return BenchmarkReport(
        header=header,
        titles={method: title_of(method) for method in header.methods},
        sources={method: source_of(method) for method in header.methods},
        envs=envs,
        missing=_missing(evaluated, trained, header),
    )


def _missing(evaluated: Sequence[EvaluationCell], trained: Sequence[TrainingCell], header: Header) -> list[str]:
    """Return PDE, method and N of seed 0 that are announced and not there, with the reason if a training failed."""
    there = {(c.env, c.method, c.num_steps) for c in evaluated if c.seed == 0}
    failed = {(c.env, c.method): c.failed for c in trained if c.failed}
    missing = []
    for env in header.envs:
        for method in header.methods:
            steps = [n for n in header.num_steps if (env, method, n) not in there]
            if steps:
                why = f" ({failed[env, method]})" if (env, method) in failed else ""
                missing.append(f"{env} {method} at N = {', '.join(map(str, steps))}{why}")
    return missing


def _training(cells: Sequence[TrainingCell], methods: Sequence[str]) -> dict[str, TrainingReport]:
    """Return settings, budget and mean cost of the trainings of each method."""
    found = {}
    for method in methods:
        own = [c for c in cells if c.method == method]
        if own:
            cost = mean_cost([c.cost for c in own])
            found[method] = TrainingReport(settings=own[0].settings, budget=own[0].budget, cost=cost)
    return found


def _steps(cells: Sequence[EvaluationCell], methods: Sequence[str]) -> dict[int, StepReport]:
    """Return the report of each N, in rising order."""
    return {n: _step([c for c in cells if c.num_steps == n], methods) for n in sorted({c.num_steps for c in cells})}


def _step(cells: Sequence[EvaluationCell], methods: Sequence[str]) -> StepReport:
    first = cells[0]
    operator = first.names.default_operator
    bases = {c.seed: c for c in cells if c.method == "base"}
    by_method = {method: [c for c in cells if c.method == method] for method in methods}
    entries = {method: _entry(own, bases, operator) for method, own in by_method.items() if own}
    floor = float(np.mean([c.data.residuals[operator].mean for c in cells]))
    return StepReport(
        methods=entries,
        data=tuple(c.data for c in cells),
        data_spectra=first.data_spectra,
        nfe=first.nfe,
        samples=first.samples,
        real=first.real,
        ranks=_ranks(entries, floor),
    )


def _entry(own: Sequence[EvaluationCell], bases: Mapping[int, EvaluationCell], operator: str) -> MethodEntry:
    """Return the entry of a method's evaluations. ``bases``: the base model's, by seed."""
    residuals = [c.metrics.residuals[operator] for c in own]
    pairs = [(c.metrics, bases[c.seed].metrics) for c in own if c.seed in bases]
    return MethodEntry(
        sets=tuple(c.metrics for c in own),
        residual=over_seeds([r.mean for r in residuals], over_samples=residuals[0].mean_interval),
        residual_ratio=over_seeds([mine.residuals[operator].mean / base.residuals[operator].mean for mine, base in pairs]),
        energy_ratio=over_seeds([mine.fidelity.energy_distance / base.fidelity.energy_distance for mine, base in pairs]),
        below_floor=any(r.below_floor for r in residuals),
        cost=mean_cost([c.cost for c in own]),
        spectra=own[0].spectra,
    )


def _ranks(entries: Mapping[str, MethodEntry], floor: float) -> dict[str, int]:
    """Rank by mean residual the methods inside the guard and not below the floor.

    Methods are equal from AT_FLOOR times the floor down, and within EQUAL of each other: seeds differ by more.
    """
    residuals = {
        method: max(entry.residual.mean, AT_FLOOR * floor)
        for method, entry in entries.items()
        if entry.within_guard and not entry.below_floor
    }
    finite = {method: value for method, value in residuals.items() if math.isfinite(value)}
    return {method: 1 + sum(other < value / EQUAL for other in finite.values()) for method, value in finite.items()}
