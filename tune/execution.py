"""A sweep on Ray Tune: trials in placement groups, ASHA as the scheduler, the study as the searcher."""

import json
import logging
from typing import Any

from ray import tune as ray_tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from pirf_ray.cli.errors import DISK_ERRORS
from pirf_ray.distributed.driver import last_line
from tune.directory import Sweep
from tune.halving import Halving, rungs
from tune.placement import Placement
from tune.search_space import SearchSpace
from tune.searcher import DISK, ERROR, FINAL, StudySearcher
from tune.studies import SweepStudy
from tune.trial_log import TrialLog
from tune.trials import TrialJob, learning_curve_of, run_trial

RETRIES = 2
"""Times a trial is started again after its process or node died; it continues from its run's newest checkpoint."""


def trial(suggestion: dict[str, Any], job: TrialJob, space: SearchSpace) -> None:
    """Run a trial in Ray Tune's process, and report how it ended.

    Its own failure is a report, not an error: Tune would try again, and it would fail again.
    """
    config = space.run_config(suggestion["params"])
    last: dict[str, Any] = {"update": 0, "score": 0.0}

    def report(update: int, score: float) -> None:
        last.update(update=update, score=score)
        ray_tune.report(dict(last))

    try:
        metrics = run_trial(job, suggestion["number"], config, report)
    except Exception as error:
        disk = getattr(error, "errno", None) in DISK_ERRORS
        ray_tune.report({**last, DISK if disk else ERROR: last_line(error)})
    else:
        ray_tune.report({**last, FINAL: json.dumps(metrics.to_json())})  # as one text: Tune flattens nested dictionaries


def execute(sweep: Sweep, study: SweepStudy, job: TrialJob, placement: Placement, log: TrialLog) -> str:
    """Run trials until all are finished, or Ctrl-C, or a disk refuses; return the disk's error. Ray must be connected."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # its advice on resuming does not hold for a sweep
    finished = study.finished()
    searcher = StudySearcher(study, total=sweep.total, log=log)
    scheduler: TrialScheduler = FIFOScheduler()
    if sweep.arguments.asha:
        scheduler = Halving(*rungs(sweep), [learning_curve_of(sweep.run(t.number)) for t in finished])
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(
            ray_tune.with_parameters(trial, job=job, space=study.space), ray_tune.PlacementGroupFactory(placement.bundles)
        ),
        tune_config=ray_tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=sweep.total - len(finished),
            max_concurrent_trials=placement.at_once,
        ),
        run_config=ray_tune.RunConfig(
            name="ray_tune",
            storage_path=str(sweep.root),
            verbose=0,
            failure_config=ray_tune.FailureConfig(max_failures=RETRIES),
        ),
    )
    tuner.fit()
    return searcher.halted
