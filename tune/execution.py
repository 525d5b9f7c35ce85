"""The sweep on Ray Tune: trials in placement groups, ASHA, the study as the searcher."""

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from pirf_ray.cli import DISK_ERRORS
from pirf_ray.distributed.driver import last_line
from tune.placement import Placement
from tune.searcher import DISK, ERROR, FINAL, StudySearcher
from tune.studies import SweepStudy, run_name
from tune.trials import TrialJob, course_of, run_trial

HALVING = 2
"""At each rung the worse half is stopped."""
RETRIES = 2
"""Times a trial is begun again whose process or node died: it goes on from its run's newest checkpoint."""


class Halving(AsyncHyperBandScheduler):
    """ASHA over our own update counter. It takes in what earlier processes of the sweep saw, and never stops the preset's run."""

    def __init__(self, first: int, last: int, courses: Iterable[list[tuple[int, float]]]) -> None:
        """``first`` rung, ``last`` update, and (update, score) of each trial before."""
        super().__init__(
            time_attr="update", metric="score", mode="min", grace_period=first, max_t=last + 1, reduction_factor=HALVING
        )
        self.last = last
        for i, course in enumerate(courses):
            past = SimpleNamespace(trial_id=f"past {i}", config={"stoppable": True})
            self.on_trial_add(None, past)
            for update, score in course:
                if self.on_trial_result(None, past, {"update": update, "score": score}) == TrialScheduler.STOP:
                    break

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if {FINAL, ERROR, DISK} & result.keys() or result["update"] >= self.last:  # nothing is saved by stopping what has ended
            return TrialScheduler.CONTINUE
        action: str = super().on_trial_result(tune_controller, trial, result)
        return action if trial.config["stoppable"] else TrialScheduler.CONTINUE


def trial(suggestion: dict[str, Any], job: TrialJob, space: Any) -> None:
    """What Ray Tune runs."""
    config = space.run_config(suggestion["params"])
    last: dict[str, Any] = {"update": 0, "score": 0.0}

    def report(metrics: dict[str, Any]) -> None:
        last.update(metrics)
        tune.report(dict(last))

    try:
        figures = run_trial(job, suggestion["number"], config, report)
    except Exception as error:  # the run's own failure would come again: Tune's retries are for lost processes and nodes
        refused = getattr(error, "errno", None) in DISK_ERRORS
        tune.report({**last, DISK if refused else ERROR: last_line(error)})
    else:
        tune.report({**last, FINAL: json.dumps(figures.to_json())})  # as one text: Tune flattens what is nested


def execute(
    study: SweepStudy,
    job: TrialJob,
    placement: Placement,
    *,
    total: int,
    asha: tuple[int, int] | None,
    on_event: Callable[[int, str, Any], None],
    storage: Path,
) -> str:
    """Run trials until ``total`` are finished, or Ctrl-C, or a disk refuses: says what it said. ``asha``: its first rung and last
    update. Ray must be connected."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it tells how to resume it, which is not how a sweep is
    searcher = StudySearcher(study, total=total, on_event=on_event)
    scheduler: TrialScheduler = FIFOScheduler()
    if asha is not None:
        scheduler = Halving(*asha, [course_of(job.trials / run_name(t.number)) for t in study.finished()])
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trial, job=job, space=study.space), tune.PlacementGroupFactory(placement.bundles)
        ),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=total - len(study.finished()),
            max_concurrent_trials=placement.at_once,
        ),
        run_config=tune.RunConfig(
            name="ray_tune",
            storage_path=str(storage),
            verbose=0,
            failure_config=tune.FailureConfig(max_failures=RETRIES),
        ),
    )
    tuner.fit()
    return searcher.halted
