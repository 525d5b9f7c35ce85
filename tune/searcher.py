"""The study as a searcher of Ray Tune: hands out its trials and records how they end."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from optuna.exceptions import StorageInternalError
from ray.tune.search import Searcher
from sqlalchemy.exc import SQLAlchemyError

from tune.goals import TrialMetrics
from tune.studies import SweepStudy, first_line
from tune.trial_log import TrialLog

FINAL, ERROR, DISK = "metrics", "failure", "disk"
"""Keys of a trial's last report: its metrics, its own failure, or a full or closed disk, which is no fault of the trial."""


class StudySearcher(Searcher):  # type: ignore[misc, unused-ignore]  # ray has no types
    """Suggests the study's next trial.

    Ray's OptunaSearch keeps the numbers of the trials in Tune's own snapshots. A driver that is killed between two snapshots
    then loses a trial or runs it twice. Here the study is the only memory.

    Once the study's disk or a trial's disk refuses, no trial starts, and ``halted`` holds the reason. The refused trials stay
    unfinished in the study.
    """

    def __init__(self, sweep: SweepStudy, *, total: int, log: TrialLog) -> None:
        """``total``: finished trials of this sweep at which it ends."""
        super().__init__(metric="score", mode="min")
        self.sweep, self.total, self.log = sweep, total, log
        self.numbers: dict[str, int] = {}
        self.halted = ""

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for Tune's snapshots, which are never read."""
        return {"total": self.total}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        """Return the next trial, or FINISHED if there is none."""
        finished: str = Searcher.FINISHED
        with self._storing():
            if self.halted or len(self.sweep.finished()) + len(self.numbers) >= self.total:
                return finished
            suggestion = self.sweep.next()
            self.numbers[trial_id] = suggestion.number
            self.log.started(suggestion.number, suggestion.params)
            return asdict(suggestion)
        return finished

    @contextmanager
    def _storing(self) -> Iterator[None]:
        """Halt the sweep if the study's storage refuses."""
        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            self.halted = f"the study's storage refused: {first_line(error.__cause__ or error)}"

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Record a point of a running trial's learning curve."""
        if not self.halted and not {FINAL, ERROR, DISK} & result.keys():
            with self._storing():
                self.sweep.record_score(self.numbers[trial_id], result["update"], result["score"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Record the result of a trial that finished, failed or was stopped by ASHA.

        Tune does not call this for a trial that Ctrl-C ends. The study holds it as running, and a resumed sweep continues it.
        """
        number, result = self.numbers.pop(trial_id), result or {}
        with self._storing():
            if DISK in result:
                self.halted = result[DISK]
                self.log.halted(number, self.halted)
            elif FINAL in result:
                metrics = TrialMetrics.from_json(json.loads(result[FINAL]))
                self.sweep.finish(number, metrics)
                self.log.finished(number, metrics)
            elif error or ERROR in result:
                why = result.get(ERROR, "its process died")
                self.sweep.fail(number, why)
                self.log.failed(number, why)
            else:
                self.sweep.stop(number)
                self.log.stopped(number, result.get("update"))

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: a sweep is resumed from its study, not from Tune's snapshots."""
