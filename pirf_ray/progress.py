"""One live line about a run: read from its metrics.jsonl, so that it needs nothing from the learner."""

import json
import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from pirf_ray.runs import RunDirectory

PLAIN_INTERVAL = 15.0


class LiveLine:
    """update, residual over its floor, fidelity, staleness, samples/s, time left. Plain lines where there is no terminal."""

    def __init__(self, run: RunDirectory, console: Console) -> None:
        self.run, self.console = run, console
        self.total = run.config.optimizer.updates
        self.started = time.monotonic()
        self.latest: dict[str, Any] = {}
        self.guard: dict[str, Any] = {}
        self._position = 0
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
        before = self.latest.get("update", 0)
        self._read()
        text = self.text()
        if self._live:
            self._live.update(Text(text), refresh=True)
        elif self.latest.get("update", 0) != before and time.monotonic() - self._printed > PLAIN_INTERVAL:
            self._printed = time.monotonic()
            self.console.print(text, soft_wrap=True, highlight=False)

    def _read(self) -> None:
        if not self.run.paths.metrics.exists():
            return
        with self.run.paths.metrics.open("rb") as file:
            if file.seek(0, 2) < self._position:  # a restarted learner took records back
                self._position, self._first = 0, None
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        for line in whole.splitlines():
            self.latest = json.loads(line)
            if "guard/residual" in self.latest:
                self.guard = self.latest
        if whole and self._first is None:
            self._first = (time.monotonic(), int(self.latest["update"]))

    def text(self) -> str:
        """The line."""
        elapsed = time.monotonic() - self.started
        if not self.latest:
            return f"starting Ray, rollouts and learner ... {elapsed:.0f} s"
        update = int(self.latest["update"])
        parts = [f"update {update}/{self.total}", f"residual/floor {self.latest['residual/over_floor']:.3g}"]
        if self.guard:
            parts += [
                f"guard: residual {self.guard['guard/residual']:.3g}",
                f"amplitude {self.guard['guard/amplitude_ratio']:.3f}",
                f"energy distance {self.guard['guard/energy_ratio']:.3f} x base",
            ]
        parts += [
            f"staleness {self.latest['rollout/staleness_max']}",
            f"{self.latest['rollout/samples_per_second']:.1f} samples/s",
            f"wait {self.latest['timing/wait']:.2f} learn {self.latest['timing/learn']:.2f} sync {self.latest['timing/sync']:.3f} s",
        ]
        if self._first and update > self._first[1]:
            left = (time.monotonic() - self._first[0]) / (update - self._first[1]) * (self.total - update)
            parts.append(f"{left / 60:.1f} min left")
        return " | ".join(parts)
