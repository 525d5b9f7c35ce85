"""The log of a sweep: a line for each trial that starts or ends."""

import time
from typing import Protocol

from rich.console import Console

from envs.common.search import Value
from tune.goals import TrialMetrics, kept
from tune.search_space import Params
from tune.studies import SweepStudy


class TrialLog(Protocol):
    """Takes the events of a sweep's trials, each named by its number in the study."""

    def started(self, number: int, params: Params) -> None:
        """Log a trial that starts or continues."""
        ...

    def finished(self, number: int, metrics: TrialMetrics) -> None:
        """Log a trial that ended with its metrics."""
        ...

    def stopped(self, number: int, update: int | None) -> None:
        """Log a trial that ASHA stopped after an update."""
        ...

    def failed(self, number: int, why: str) -> None:
        """Log a trial that failed."""
        ...

    def halted(self, number: int, why: str) -> None:
        """Log a trial that a full or closed disk ended; a resumed sweep continues it."""
        ...


class ConsoleLog:
    """Prints each event as one line, with the finished trials and the minutes so far."""

    def __init__(self, study: SweepStudy, console: Console, *, total: int) -> None:
        self.study, self.console, self.total = study, console, total
        self._began = time.monotonic()

    def started(self, number: int, params: Params) -> None:
        """Print the trial's parameters."""
        self._print(number, "starts", ", ".join(f"{name} {short(value)}" for name, value in params.items()))

    def finished(self, number: int, metrics: TrialMetrics) -> None:
        """Print the metrics that decide."""
        outside = "" if kept(metrics.constraints(self.study.goal, self.study.limits)) else ", outside the limits"
        residual = f"residual {metrics.residual:.4g} ({metrics.residual_ratio:.3g} x base)"
        self._print(
            number,
            "finished",
            f"{residual}, energy distance {metrics.energy:.4g} ({metrics.energy_ratio:.3f} x base){outside}",
        )

    def stopped(self, number: int, update: int | None) -> None:
        """Print the update after which ASHA stopped the trial."""
        self._print(number, "stopped", f"at update {update}, where others were better")

    def failed(self, number: int, why: str) -> None:
        """Print the error."""
        self._print(number, "failed", why)

    def halted(self, number: int, why: str) -> None:
        """Print the disk's error."""
        self._print(number, "halted", why)

    def _print(self, number: int, event: str, detail: str) -> None:
        minutes = (time.monotonic() - self._began) / 60
        line = f"[{len(self.study.finished())}/{self.total}, {minutes:.1f} min] trial {number} {event}: {detail}"
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)


def short(value: Value | None) -> str:
    """Return a parameter's value as text; ``-`` if the trial does not have it."""
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)
