"""Ray Tune's side of the study: hands out its trials and writes down what becomes of them."""

import json
from collections.abc import Callable
from typing import Any

from ray.tune.search import Searcher

from tune.goals import Figures
from tune.studies import SweepStudy

FINAL, ERROR = "figures", "failure"


class StudySearcher(Searcher):
    """Suggests what the study says. Not OptunaSearch: that keeps which trial is which in Tune's own snapshots, and a driver that is
    killed between one and the next loses a trial or runs it twice. Here the study is the only memory.

    ``total``: finished trials of this sweep at which it ends. ``on_event``: told of each trial (number, what, about it).
    """

    def __init__(self, sweep: SweepStudy, *, total: int, on_event: Callable[[int, str, Any], None]) -> None:
        super().__init__(metric="score", mode="min")
        self.sweep, self.total, self.on_event = sweep, total, on_event
        self.numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """For Tune's snapshots, which nothing is read from."""
        return {"total": self.total}

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:
        if len(self.sweep.finished()) + len(self.numbers) >= self.total:
            return Searcher.FINISHED
        suggestion = self.sweep.next()
        self.numbers[trial_id] = suggestion.number
        self.on_event(suggestion.number, "begins", suggestion.params)
        return {"number": suggestion.number, "params": suggestion.params, "stoppable": suggestion.stoppable}

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        if FINAL not in result and ERROR not in result:
            self.sweep.note(self.numbers[trial_id], result["update"], result["score"])

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Of a trial that ended with its figures, of one that ASHA stopped before, of one that failed. Not of one that Ctrl-C
        stops: the study has it as running, and a resumed sweep goes on with it."""
        number = self.numbers.pop(trial_id)
        if result and FINAL in result:
            figures = Figures(**json.loads(result[FINAL]))
            self.sweep.finish(number, figures)
            self.on_event(number, "ends", figures)
        elif error or (result and ERROR in result):
            why = result[ERROR] if result and ERROR in result else "its process died"
            self.sweep.fail(number, why)
            self.on_event(number, "failed", why)
        else:
            self.sweep.stop(number)
            self.on_event(number, "stopped", result)

    def save(self, checkpoint_path: str) -> None:
        """Tune's snapshots need nothing of this: see the class. A sweep is resumed from its study."""
