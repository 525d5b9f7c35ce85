"""One trial: its learning curve, its run, and what is done when it is there already."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from pirf_ray.evaluation.tables import read_result
from pirf_ray.learning.updates import UpdateMetrics
from pirf_ray.metrics.drift import Drift, DriftLimits
from pirf_ray.training.guard import GuardMetrics
from pirf_ray.training.records import RolloutMetrics, Timing, UpdateRecord
from pirf_ray.training.runs import RunDirectory
from tiny_models import start_run, tiny_config, tiny_tuning, write_base
from tune.goals import TrialMetrics
from tune.trials import ERROR, LearningCurve, TrialJob, learning_curve_of, open_run, run_trial, train

GUARD = GuardMetrics(
    residual=0.1,
    residual_median=0.1,
    over_floor=10.0,
    base_residual=1.0,
    drift=Drift(amplitude_ratio=1.0, energy_ratio=1.0, spectrum_rise=0.0),
    limits=DriftLimits(),
    inside=True,
)


def record(update: int, guard: GuardMetrics | None = None) -> UpdateRecord:
    return UpdateRecord(
        update=update,
        metrics=UpdateMetrics(reward=0.0, grad_norm=1.0, learning_rate=1e-3, skipped=0, weight_distance=0.0),
        rollout=RolloutMetrics(sample_ids=(0,), staleness_max=0, samples_per_second=1.0),
        timing=Timing(wait=0.0, learn=0.0, sync=0.0),
        guard=guard,
    )


def test_a_score_is_the_lowest_residual_inside_the_limits_so_far() -> None:
    points: list[tuple[int, float]] = []
    curve = LearningCurve(lambda *point: points.append(point))
    curve.add(record(1))
    curve.add(record(2, replace(GUARD, residual=0.01, inside=False)))
    curve.add(record(4, GUARD))
    curve.add(record(6, replace(GUARD, residual=0.5)))
    curve.add(record(8, replace(GUARD, residual=0.0)))
    assert points == [(2, 0.0), (4, -1.0), (6, -1.0), (8, math.inf)], "the base model's until one is inside"


def test_a_run_without_a_residual_has_no_learning_curve() -> None:
    """A PDE without operators."""
    points: list[tuple[int, float]] = []
    curve = LearningCurve(lambda *point: points.append(point))
    curve.add(record(2, replace(GUARD, residual=None, residual_median=None, over_floor=None, base_residual=None, reward=-1.0)))
    assert points == []


def test_records_that_a_continued_run_makes_again_are_no_points() -> None:
    points: list[tuple[int, float]] = []
    curve = LearningCurve(lambda *point: points.append(point))
    for update in (2, 4, 4, 2, 3, 4, 6):
        curve.add(record(update, GUARD))
    assert [update for update, _ in points] == [2, 4, 6]


def job(path: Path) -> TrialJob:
    base = path / "base" if (path / "base").exists() else write_base(path / "base")
    return TrialJob(trials=path / "trials", base=base, mode="in-process", threads=1)


def test_a_trial_is_a_run_that_is_never_made_twice(tmp_path: Path) -> None:
    points: list[tuple[int, float]] = []
    made = run_trial(job(tmp_path), 3, tiny_config(), lambda *point: points.append(point))
    root = tmp_path / "trials/0003"
    assert made == TrialMetrics.of(read_result(root))
    assert [update for update, _ in points] == [2, 4, 6] and learning_curve_of(root) == points
    written = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file() and path.name != ".lock"}
    assert run_trial(job(tmp_path), 3, tiny_config(), lambda *_: pytest.fail("nothing is trained")) == made
    assert written == {path: path.stat().st_mtime_ns for path in written}


def test_a_trial_continues_from_its_checkpoint_with_its_past_curve(tmp_path: Path) -> None:
    """Cut off after update 3, whose record is made again after the checkpoint of update 2."""
    whole: list[tuple[int, float]] = []
    undisturbed = open_run(tmp_path / "trials/0000", tiny_config(), job(tmp_path).base)
    expected = train(undisturbed, job(tmp_path), lambda *point: whole.append(point))
    run = open_run(tmp_path / "trials/0001", tiny_config(), tmp_path / "base")
    stop = run.paths.root / ".stop"
    tiny_tuning(run.config, run).fit(lambda record: stop.touch() if record.update == 2 else None)
    stop.unlink()
    assert [record.update for record in run.history()] == [1, 2, 3]
    points: list[tuple[int, float]] = []
    assert train(run, job(tmp_path), lambda *point: points.append(point)) == expected
    assert points == whole == learning_curve_of(run.paths.root)
    assert train(run, job(tmp_path), lambda *_: None) == expected, "an outcome is not made again"


def test_a_run_of_other_settings_is_refused_and_its_error_stays_with_it(tmp_path: Path) -> None:
    run = start_run(tmp_path, tiny_config())
    with pytest.raises(ValueError, match="other settings than this trial's"):
        open_run(run.paths.root, tiny_config(updates=8), tmp_path / "base")
    broken = tiny_config(objective="draft-lv")
    with pytest.raises(ValueError, match="truncation must be 1, got 2"):
        run_trial(job(tmp_path), 0, broken, lambda *_: None)
    assert "--objective draft-lv differentiates the last step only" in (tmp_path / "trials/0000" / ERROR).read_text()


def test_a_run_left_without_settings_is_made_again(tmp_path: Path) -> None:
    root = tmp_path / "trials/0000"
    (root / "base").mkdir(parents=True)
    (root / "base/half").touch()
    assert learning_curve_of(root) == []
    run = open_run(root, tiny_config(), job(tmp_path).base)
    assert RunDirectory.open(root).config == run.config and not (root / "base/half").exists()
