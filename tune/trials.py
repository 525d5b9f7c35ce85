"""One trial of a sweep: a fine-tuning run in a directory of its own, which is gone on with if it is there."""

import json
import math
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pirf_ray.config import TrainConfig
from pirf_ray.runs import RunDirectory
from pirf_ray.training import Outcome, evaluate_run, outcome, train_here
from tune.goals import Figures
from tune.studies import run_name

Mode = Literal["in-process", "distributed"]
Report = Callable[[dict[str, Any]], None]
LOCK_PATIENCE = 120.0
"""Seconds to wait for a run's lock: a trial whose driver was killed may live on for a while."""
ERROR = "error.txt"


@dataclass(frozen=True, kw_only=True)
class TrialJob:
    """What all trials of a sweep share. Picklable."""

    trials: Path
    """Directory of the run directories."""
    base: Path
    mode: Mode
    threads: int
    device: str = "cpu"


def run_trial(job: TrialJob, number: int, config: TrainConfig, report: Report) -> Figures:
    """Train, evaluate, and return the figures; ``report`` gets ``{"update", "score"}`` after each guard evaluation.

    ``score`` is the log10 of the lowest residual inside the guard's limits so far: what a trial that stopped here would keep.
    """
    torch.set_num_threads(job.threads)
    root = job.trials / run_name(number)
    run = open_run(root, config, job.base)
    with run.locked(LOCK_PATIENCE):
        try:
            if not run.paths.report.is_file():  # what an evaluation writes last
                ending = train(run, job, report)
                evaluate_run(run, ending, data=None, progress=iter)
        except Exception:  # the driver is told one line; whoever looks for the cause finds it with the run
            (root / ERROR).write_text(traceback.format_exc())
            raise
        return Figures.of(json.loads(run.paths.result.read_text()))


def open_run(root: Path, config: TrainConfig, base: Path) -> RunDirectory:
    """The run of a trial: as it was left, or new. What was left before its settings were written is made again."""
    if not (root / "config.json").is_file():
        if root.exists():
            shutil.rmtree(root)
        return RunDirectory.create(root, config, base)
    run = RunDirectory.open(root)
    if run.config != config:
        raise ValueError(f"{root}: holds a run with other settings than this trial's")
    return run


def train(run: RunDirectory, job: TrialJob, report: Report) -> Outcome:
    """The whole training, unless it had ended already."""
    course = Course(report)
    for record in run.history():
        course.take(record)
    if run.paths.outcome.is_file():
        return outcome(run)
    if job.mode == "in-process":
        return train_here(run, device=job.device, on_record=course.take)
    from pirf_ray.distributed.driver import run_distributed

    seen = len(run.history())

    def poll() -> None:
        nonlocal seen
        fresh = run.history()[seen:]
        seen += len(fresh)
        for record in fresh:
            course.take(record)

    run_distributed(run, poll)
    poll()
    return outcome(run)


def course_of(root: Path) -> list[tuple[int, float]]:
    """(update, score) of a trial's run so far; empty where it has none here."""
    if not (root / "config.json").is_file():
        return []
    found: list[tuple[int, float]] = []
    course = Course(lambda report: found.append((report["update"], report["score"])))
    for record in RunDirectory.open(root).history():
        course.take(record)
    return found


class Course:
    """Turns a run's records into reports."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.best = math.inf

    def take(self, record: dict[str, Any]) -> None:
        if "guard/residual" not in record:
            return
        if self.best == math.inf:
            self.best = record["guard/base_residual"]
        if record["guard/inside"]:
            self.best = min(self.best, record["guard/residual"])
        score = math.log10(self.best) if self.best > 0 else math.inf
        self.report({"update": int(record["update"]), "score": score})
