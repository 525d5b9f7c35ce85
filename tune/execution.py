"""The sweep on Ray Tune: trials in placement groups, ASHA, the study as the searcher."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from pirf_ray.distributed.driver import last_line
from tune.placement import Placement
from tune.searcher import ERROR, FINAL, StudySearcher
from tune.studies import SweepStudy
from tune.trials import TrialJob, run_trial

RETRIES = 2
"""Times a trial is begun again whose process or node died: it goes on from its run's newest checkpoint."""


def trial(suggestion: dict[str, Any], job: TrialJob, space: Any) -> None:
    """What Ray Tune runs."""
    config = space.run_config(suggestion["params"])
    last: dict[str, Any] = {"update": 0, "score": 0.0}

    def report(metrics: dict[str, Any]) -> None:
        last.update(metrics)
        if suggestion["stoppable"]:
            tune.report(dict(last))

    try:
        figures = run_trial(job, suggestion["number"], config, report)
    except Exception as error:  # the run's own failure would come again: Tune's retries are for lost processes and nodes
        tune.report({**last, ERROR: last_line(error)})
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
) -> None:
    """Run trials until ``total`` are finished, or Ctrl-C. ``asha``: its first rung and last update. Ray must be connected."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # it tells how to resume it, which is not how a sweep is
    searcher = StudySearcher(study, total=total, on_event=on_event)
    scheduler: TrialScheduler = FIFOScheduler()
    if asha is not None:
        scheduler = AsyncHyperBandScheduler(
            time_attr="update", grace_period=asha[0], max_t=asha[1] + 1, reduction_factor=2, stop_last_trials=False
        )
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(trial, job=job, space=study.space), tune.PlacementGroupFactory(placement.bundles)
        ),
        tune_config=tune.TuneConfig(
            metric="score",
            mode="min",
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
