"""Ray Tune's side of the study: hands out its trials and writes down what becomes of them."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from optuna.exceptions import StorageInternalError
from ray.tune.search import Searcher
from sqlalchemy.exc import SQLAlchemyError

from tune.goals import Figures
from tune.studies import SweepStudy, first_line

FINAL, ERROR, DISK = "figures", "failure", "disk"
"""How a trial's last report says what became of it; a disk that is full or closed is no fault of the trial's."""


class StudySearcher(Searcher):
    """Suggests what the study says. Not OptunaSearch: that keeps which trial is which in Tune's own snapshots, and a driver that is
    killed between one and the next loses a trial or runs it twice. Here the study is the only memory.

    Once a disk refuses, the study's or a trial's, nothing new begins (``halted`` says why) and what it refused is left as it was:
    unfinished in the study.

    ``total``: finished trials of this sweep at which it ends. ``on_event``: told of each trial (number, what, about it).
    """

    def __init__(self, sweep: SweepStudy, *, total: int, on_event: Callable[[int, str, Any], None]) -> None:
        super().__init__(metric="score", mode="min")
        self.sweep, self.total, self.on_event = sweep, total, on_event
        self.numbers: dict[str, int] = {}
        self.halted = ""

    def __getstate__(self) -> dict[str, Any]:
        """For Tune's snapshots, which nothing is read from."""
        return {"total": self.total}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        with self._storing():
            if self.halted or len(self.sweep.finished()) + len(self.numbers) >= self.total:
                return Searcher.FINISHED
            suggestion = self.sweep.next()
            self.numbers[trial_id] = suggestion.number
            self.on_event(suggestion.number, "begins", suggestion.params)
            return {"number": suggestion.number, "params": suggestion.params, "stoppable": suggestion.stoppable}
        return Searcher.FINISHED

    @contextmanager
    def _storing(self) -> Iterator[None]:
        try:
            yield
        except (StorageInternalError, SQLAlchemyError) as error:
            self.halted = f"the study's storage refused: {first_line(error.__cause__ or error)}"

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if not self.halted and not {FINAL, ERROR, DISK} & result.keys():
            with self._storing():
                self.sweep.note(self.numbers[trial_id], result["update"], result["score"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Of a trial that ended with its figures, of one that ASHA stopped before, of one that failed. Not of one that Ctrl-C
        stops: the study has it as running, and a resumed sweep goes on with it."""
        number, result = self.numbers.pop(trial_id), result or {}
        with self._storing():
            if DISK in result:
                self.halted = result[DISK]
                self.on_event(number, "halted", self.halted)
            elif FINAL in result:
                figures = Figures(**json.loads(result[FINAL]))
                self.sweep.finish(number, figures)
                self.on_event(number, "ends", figures)
            elif error or ERROR in result:
                why = result.get(ERROR, "its process died")
                self.sweep.fail(number, why)
                self.on_event(number, "failed", why)
            else:
                self.sweep.stop(number)
                self.on_event(number, "stopped", result)

    def save(self, checkpoint_path: str) -> None:
        """Tune's snapshots need nothing of this: see the class. A sweep is resumed from its study."""
