"""One live line about a run, read from its journal, so that it needs nothing from the learner."""

import math
import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.text import Text

from envs.common.journals import JournalReader
from pirf_ray.training.guard import GuardMetrics
from pirf_ray.training.records import UpdateRecord
from pirf_ray.training.runs import RunDirectory

PLAIN_INTERVAL = 15.0


class LiveLine:
    """Shows update, residual over its floor, fidelity, staleness, samples/s, time left. Plain lines if there is no terminal."""

    def __init__(self, run: RunDirectory, console: Console) -> None:
        self.run, self.console = run, console
        self.total = run.config.optimizer.updates
        self.started = time.monotonic()
        self.latest: UpdateRecord | None = None
        self.guarded: UpdateRecord | None = None
        self._reader = JournalReader(run.journal)
        self._first: tuple[float, int] | None = None
        self._printed = 0.0
        self._live = (
            Live(Text("starting Ray"), console=console, transient=True, auto_refresh=False) if console.is_terminal else None
        )

    def __enter__(self) -> "LiveLine":
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def refresh(self) -> None:
        """Read what is new and show it."""
        before = self.latest
        self._read()
        text = self.text()
        if self._live:
            self._live.update(Text(text), refresh=True)
        elif self.latest is not before and time.monotonic() - self._printed > PLAIN_INTERVAL:
            self._printed = time.monotonic()
            self.console.print(text, soft_wrap=True, highlight=False)

    def _read(self) -> None:
        fresh, rewound = self._reader.fresh()
        if rewound:  # a restarted learner took records back
            self._first = None
        for record in map(UpdateRecord.from_json, fresh):
            self.latest = record
            if record.guard:
                self.guarded = record
        if fresh and self._first is None and self.latest:
            self._first = (time.monotonic(), self.latest.update)

    def text(self) -> str:
        """Return the line."""
        if self.latest is None:
            return f"starting Ray, rollouts and learner ... {time.monotonic() - self.started:.0f} s"
        record = self.latest
        over_floors = (term.over_floor for term in record.metrics.terms.values())
        over_floor = next((over for over in over_floors if over is not None and math.isfinite(over)), None)
        parts = [f"update {record.update}/{self.total}"]
        parts.append(f"reward {record.metrics.reward:.4g}" if over_floor is None else f"residual/floor {over_floor:.3g}")
        if self.guarded and self.guarded.guard:
            parts.append("guard: " + " | ".join(_guard_numbers(self.guarded.guard)))
        timing = record.timing
        parts += [
            f"staleness {record.rollout.staleness_max}",
            f"{record.rollout.samples_per_second:.1f} samples/s",
            f"wait {timing.wait:.2f} learn {timing.learn:.2f} sync {timing.sync:.3f} s",
        ]
        if self._first and record.update > self._first[1]:
            left = (time.monotonic() - self._first[0]) / (record.update - self._first[1]) * (self.total - record.update)
            parts.append(f"{left / 60:.1f} min left")
        return " | ".join(parts)


def _guard_numbers(guard: GuardMetrics) -> list[str]:
    """Return the reward or the residual, if there is one, and the drift."""
    measured = [f"reward {guard.reward:.4g}"] if guard.reward is not None else []
    if guard.reward is None and guard.residual is not None:
        measured = [f"residual {guard.residual:.3g}"]
    return [
        *measured,
        f"amplitude {guard.drift.amplitude_ratio:.3f}",
        f"energy distance {guard.drift.energy_ratio:.3f} x base",
    ]
