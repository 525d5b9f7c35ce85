"""Asynchronous successive halving (ASHA, Li et al. 2020, arXiv 1810.05934): hopeless trials are stopped early."""

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, TrialScheduler

from tune.directory import Sweep
from tune.searcher import DISK, ERROR, FINAL

REDUCTION = 2
"""At each rung the worse half is stopped."""
FIRST_RUNG = 4
"""The first rung is at this part of the updates."""


class Halving(AsyncHyperBandScheduler):  # type: ignore[misc, unused-ignore]  # ray has no types
    """ASHA over our own update counter. It knows the trials of earlier processes, and never stops the preset's run."""

    def __init__(self, first: int, last: int, curves: Iterable[list[tuple[int, float]]]) -> None:
        """``first``: update of the first rung. ``last``: the last update. ``curves``: learning curves of earlier trials."""
        super().__init__(
            time_attr="update", metric="score", mode="min", grace_period=first, max_t=last + 1, reduction_factor=REDUCTION
        )
        self.last = last
        for i, curve in enumerate(curves):
            past = SimpleNamespace(trial_id=f"past {i}", config={"stoppable": True})
            self.on_trial_add(None, past)
            for update, score in curve:
                if self.on_trial_result(None, past, {"update": update, "score": score}) == TrialScheduler.STOP:
                    break

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Return whether the trial continues. A trial that has ended always does: stopping it would save nothing."""
        go_on: str = TrialScheduler.CONTINUE
        if {FINAL, ERROR, DISK} & result.keys() or result["update"] >= self.last:
            return go_on
        action: str = super().on_trial_result(tune_controller, trial, result)
        return action if trial.config["stoppable"] else go_on


def rungs(sweep: Sweep) -> tuple[int, int]:
    """Return the first rung, at a quarter of the updates but not before the first guard evaluation, and the last update."""
    last = sweep.last_update
    return max(1, last // FIRST_RUNG, min(last, sweep.config.guard.guard_every)), last
