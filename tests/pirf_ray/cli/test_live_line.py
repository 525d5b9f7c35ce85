"""The live line: of a physics reward, of another reward, of a run whose PDE has no residual."""

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pirf_ray.cli.live_line import LiveLine
from pirf_ray.learning.updates import TermMetrics, UpdateMetrics
from pirf_ray.metrics.drift import Drift, DriftLimits
from pirf_ray.training.guard import GuardMetrics
from pirf_ray.training.records import RolloutMetrics, Timing, UpdateRecord
from pirf_ray.training.runs import RunDirectory
from tiny_models import start_run, tiny_config

GUARD = GuardMetrics(
    residual=0.25,
    residual_median=0.2,
    over_floor=2.0,
    base_residual=1.0,
    drift=Drift(amplitude_ratio=0.99, energy_ratio=1.01, spectrum_rise=0.0),
    limits=DriftLimits(),
    inside=True,
)
TERM = TermMetrics(is_residual=True, mean=0.5, median=0.4, over_floor=4.0)
RECORD = UpdateRecord(
    update=1,
    metrics=UpdateMetrics(
        reward=-1.5, grad_norm=1.0, learning_rate=1e-4, skipped=0, weight_distance=0.1, terms={"consistent": TERM}
    ),
    rollout=RolloutMetrics(sample_ids=(0,), staleness_max=0, samples_per_second=1.0),
    timing=Timing(wait=0.1, learn=0.1, sync=0.1),
    guard=GUARD,
)
BARE = replace(GUARD, residual=None, residual_median=None, over_floor=None, base_residual=None)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return start_run(tmp_path, tiny_config())


def line(run: RunDirectory, record: UpdateRecord) -> str:
    """Return the line after one record."""
    run.journal.append(record.to_json())
    live = LiveLine(run, Console(quiet=True))
    live.refresh()
    return live.text()


def test_a_physics_reward_is_told_by_its_residual(run: RunDirectory) -> None:
    text = line(run, RECORD)
    assert text.startswith(
        "update 1/6 | residual/floor 4 | guard: residual 0.25 | amplitude 0.990 | energy distance 1.010 x base"
    )
    assert "nan" not in text and "reward" not in text


def test_another_reward_is_told_by_its_mean(run: RunDirectory) -> None:
    plain = replace(RECORD, metrics=replace(RECORD.metrics, terms={}), guard=replace(GUARD, reward=-2.0))
    assert line(run, plain).startswith("update 1/6 | reward -1.5 | guard: reward -2 | amplitude 0.990")


def test_a_residual_without_a_floor_is_not_told_over_it(run: RunDirectory) -> None:
    """The floor of a PDE without a solver is 0."""
    terms = {"laplace": replace(TERM, over_floor=float("inf"))}
    assert line(run, replace(RECORD, metrics=replace(RECORD.metrics, terms=terms))).startswith("update 1/6 | reward -1.5 | guard")


def test_without_a_residual_and_a_reward_the_guard_tells_the_drift(run: RunDirectory) -> None:
    """A PDE without operators, rewarded by its conditions."""
    bare = replace(RECORD, metrics=replace(RECORD.metrics, terms={}), guard=BARE)
    assert line(run, bare).startswith("update 1/6 | reward -1.5 | guard: amplitude 0.990 | energy distance 1.010 x base")
