"""Progress of samples, and tables, on the terminal."""

import time
from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_SECONDS = 15.0


def progress_bar(label: str, console: Console | None = None) -> Callable[[Iterable[range]], Iterator[range]]:
    """Return a wrapper of ranges of samples that shows how many are done: a bar, or without a terminal a line at times."""

    def track(parts: Iterable[range]) -> Iterator[range]:
        listed = list(parts)
        total, done = sum(len(part) for part in listed), 0
        started = printed = time.monotonic()
        with samples_progress(console) as progress:
            task = progress.add_task(label, total=total)
            for part in listed:
                yield part
                progress.advance(task, len(part))
                done, now = done + len(part), time.monotonic()
                if not progress.console.is_terminal and now - printed >= PLAIN_SECONDS:
                    printed = now
                    rate = done / (now - started)
                    line = f"{label} {done}/{total} | {rate:.1f} samples/s | {(total - done) / rate / 60:.1f} min left"
                    progress.console.print(line, highlight=False, soft_wrap=True)

    return track


def print_table(table: Table, width: int) -> None:
    """Print a table, without a terminal as wide as it wants to be."""
    console = Console()
    (console if console.is_terminal else Console(width=width)).print(table)


def samples_progress(console: Console | None = None) -> Progress:
    """Return a progress bar of samples."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
        transient=True,
    )
