"""One trial of a sweep: a fine-tuning run in a directory of its own, continued if it exists."""

import math
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pirf_ray.evaluation.models import evaluate_run
from pirf_ray.evaluation.tables import read_result
from pirf_ray.training.finetuning import train_here
from pirf_ray.training.outcome import Outcome
from pirf_ray.training.records import UpdateRecord
from pirf_ray.training.runs import RunDirectory, RunPaths
from pirf_ray.training.settings import TrainConfig
from tune.goals import TrialMetrics
from tune.settings import Mode
from tune.studies import run_name

Report = Callable[[int, float], None]
"""Takes the update and the score of each point of a learning curve."""
LOCK_PATIENCE = 120.0
"""Seconds to wait for a run's lock: the trial of a killed driver may live on for a while."""
ERROR = "error.txt"


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """Settings that all trials of a sweep share. Picklable."""

    trials: Path
    """Directory of the run directories."""
    base: Path
    """Directory of the base model."""
    mode: Mode
    """How a trial runs."""
    threads: int
    """Torch threads of the trial's process."""
    device: str = "cpu"
    """Device of the trial's process."""


def run_trial(job: TrialJob, number: int, config: TrainConfig, report: Report) -> TrialMetrics:
    """Train and evaluate a trial; return its metrics. ``report`` gets each point of its learning curve."""
    torch.set_num_threads(job.threads)
    root = job.trials / run_name(number)
    run = open_run(root, config, job.base)
    with run.locked(LOCK_PATIENCE):
        try:
            if run.paths.report.is_file():  # an evaluation writes it last
                return TrialMetrics.of(read_result(root))
            outcome = train(run, job, report)
            return TrialMetrics.of(evaluate_run(run, outcome, data=None, progress=iter, device=job.device).result)
        except Exception:  # the driver gets one line; the whole cause stays with the run
            (root / ERROR).write_text(traceback.format_exc())
            raise


def open_run(root: Path, config: TrainConfig, base: Path) -> RunDirectory:
    """Return the run of a trial: as it was left, or new. A run that was left without its settings is made again."""
    if not RunPaths(root=root).config.is_file():
        if root.exists():
            shutil.rmtree(root)
        return RunDirectory.create(root, config, base)
    run = RunDirectory.open(root, given=None)
    if run.config != config:
        raise ValueError(f"{root}: holds a run with other settings than this trial's")
    return run


def train(run: RunDirectory, job: TrialJob, report: Report) -> Outcome:
    """Train the run to its end, unless that has been done; return its outcome."""
    curve = LearningCurve(report)
    curve.follow(run)
    if run.paths.outcome.is_file():
        return run.outcome()
    if job.mode == "in-process":
        train_here(run, device=job.device, on_record=curve.add)
        return run.outcome()
    from pirf_ray.distributed.driver import run_distributed

    run_distributed(run, lambda: curve.follow(run))
    curve.follow(run)
    return run.outcome()


def learning_curve_of(root: Path) -> list[tuple[int, float]]:
    """Return (update, score) of each point of a run's learning curve so far; empty if this sweep has no such run."""
    if not RunPaths(root=root).config.is_file():
        return []
    points: list[tuple[int, float]] = []
    LearningCurve(lambda update, score: points.append((update, score))).follow(RunDirectory.open(root, given=None))
    return points


class LearningCurve:
    """The score of a run against updates: a point after each guard evaluation.

    The score is the log10 of the lowest residual inside the guard's limits so far, which is what a trial that stopped here
    would keep.
    """

    def __init__(self, report: Report) -> None:
        self.report = report
        self.best = math.inf
        self.update = 0

    def follow(self, run: RunDirectory) -> None:
        """Add every record of the run that is new."""
        for record in run.history():
            self.add(record)

    def add(self, record: UpdateRecord) -> None:
        """Report the point of a record. A record that was added before is ignored: a continued run makes some again."""
        if record.update <= self.update:
            return
        self.update = record.update
        guard = record.guard
        if guard is None or guard.residual is None or guard.base_residual is None:
            return
        if self.best == math.inf:
            self.best = guard.base_residual
        if guard.inside:
            self.best = min(self.best, guard.residual)
        self.report(record.update, math.log10(self.best) if self.best > 0 else math.inf)
