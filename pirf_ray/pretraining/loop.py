"""The pretraining loop: updates, checkpoints, progress, Ctrl-C. With Ray, each Train worker runs this loop."""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from envs.common.checks import ConfigError
from envs.common.journals import Journal
from pirf_ray.diffusion.checkpoints import CheckpointError
from pirf_ray.pretraining.trainer import Pretrainer

CHECKPOINT_UPDATES = 500
LINE_SECONDS = 15.0
RECORD_SECONDS = 1.0


@dataclass(frozen=True, kw_only=True)
class Workers:
    """Workers of a data-parallel training over Ray Train."""

    workers: int = 0
    """Number of Ray Train workers; each gets an equal share of every batch. 1: this process, without Ray. 0: one per GPU."""
    worker_cpus: float = 1.0
    """CPUs that Ray reserves for each worker, and its number of torch threads."""
    worker_gpus: int | None = None
    """GPUs of each worker, 0 or 1. Default: 1 if there are GPUs."""
    max_failures: int = 3
    """Number of restarts from the last checkpoint after a lost worker."""
    address: str | None = None
    """Address of a Ray cluster that sees OUT and the data under the same paths. Default: start Ray on this machine."""

    def __post_init__(self) -> None:
        for name in ("workers", "worker_cpus", "max_failures"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}")
        if self.worker_gpus not in (None, 0, 1):
            raise ConfigError(f"--worker-gpus must be 0 or 1 (a worker computes on one GPU), got {self.worker_gpus}")

    @property
    def threads(self) -> int:
        """Return the torch threads of each worker."""
        return max(1, int(self.worker_cpus))


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """Record of pretrain.jsonl, written about once per second."""

    update: int
    """Updates made."""
    mean_loss: float | None
    """Running mean of the loss."""
    images_per_second: float
    """Images shown per second since the training began or was resumed."""

    def to_json(self) -> dict[str, Any]:
        """Return the record as pretrain.jsonl holds it."""
        return dict(vars(self))


def begin(trainer: Pretrainer, checkpoint: Path, init: Path | None) -> None:
    """Continue from the checkpoint if it exists; otherwise start from the model ``init``, or from random weights.

    CheckpointError if the checkpoint's training started from another model than ``init``.
    """
    if init is not None:
        trainer.start_from(init)
    if checkpoint.exists():
        given = trainer.init
        trainer.load(checkpoint)
        if init is not None and trainer.init != given:
            raise CheckpointError(f"{checkpoint}: started from {trainer.init or 'random weights'}, not from --init {init}")


def run_updates(
    trainer: Pretrainer, checkpoint: Path, *, asked_to_stop: Callable[[], bool], on_record: Callable[[TrainingRecord], None]
) -> None:
    """Make updates to the end, or until rank 0 is asked to stop. Every rank runs this loop.

    Rank 0 alone saves checkpoints, asks ``asked_to_stop`` and calls ``on_record``. It saves every CHECKPOINT_UPDATES updates
    and at the end, and records about once per second. FloatingPointError, on every rank, for a non-finite loss.
    """
    first = trainer.communicator.rank == 0
    started, begun, recorded = time.monotonic(), trainer.update_index, 0.0
    while not trainer.finished and not trainer.communicator.broadcast(first and asked_to_stop()):
        trainer.step()
        if first and trainer.update_index % CHECKPOINT_UPDATES == 0:
            trainer.save(checkpoint)
        now = time.monotonic()
        if first and (now - recorded > RECORD_SECONDS or trainer.finished):
            recorded = now
            rate = (trainer.update_index - begun) * trainer.settings.batch / (now - started)
            on_record(TrainingRecord(update=trainer.update_index, mean_loss=trainer.mean_loss, images_per_second=rate))
    if first:
        trainer.save(checkpoint)


def diverged(error: str, checkpoint: Path) -> ConfigError:
    """Return the error of a non-finite loss. Its message names the last checkpoint."""
    kept = f"the last checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
    return ConfigError(f"{error}; {kept}")


class Log:
    """Journal OUT/pretrain.jsonl of a training's records. Rank 0 writes it; the process that shows the progress reads it."""

    def __init__(self, out: Path) -> None:
        self.journal = Journal(out / "pretrain.jsonl")

    def rewind(self, update: int) -> None:
        """Drop the records of failures and of updates after ``update``, which will be made again."""
        self.journal.rewind(lambda record: record["update"] <= update and "error" not in record)

    def append(self, record: TrainingRecord) -> None:
        """Add a record."""
        self.journal.append(record.to_json())

    def fail(self, update: int, error: str) -> None:
        """Record an error that a restart would repeat."""
        self.journal.append({"update": update, "error": error})

    def latest(self) -> TrainingRecord | None:
        """Return the last record. None if there is no record or the last one is a failure."""
        record = self.journal.latest()
        return TrainingRecord(**record) if record and "error" not in record else None

    def failure(self) -> str | None:
        """Return the error of the last record. None if the last record is not a failure."""
        record = self.journal.latest()
        return record.get("error") if record else None


class Lines:
    """Printed lines about the training, one every LINE_SECONDS and one at the end."""

    def __init__(self, updates: int, batch: int, console: Console) -> None:
        self.updates, self.batch, self.console = updates, batch, console
        self._printed = 0.0

    def show(self, record: TrainingRecord) -> None:
        """Print a line if it is time, or if the training has ended."""
        finished = record.update >= self.updates
        if time.monotonic() - self._printed > LINE_SECONDS or finished:
            self._printed = time.monotonic()
            rate = record.images_per_second
            left = (self.updates - record.update) * self.batch / rate / 60
            self.console.print(
                f"update {record.update}/{self.updates} | loss {record.mean_loss or 0:.4f} | "
                f"{rate:.0f} images/s | {left:.1f} min left",
                highlight=False,
            )


@contextmanager
def whole_updates() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C sets. A second Ctrl-C raises KeyboardInterrupt at once.

    The first Ctrl-C lets the update end, so a resumed training gives the same bits as an uninterrupted training.
    """
    stop = threading.Event()

    def ask(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def train_here(trainer: Pretrainer, checkpoint: Path, lines: Lines) -> None:
    """Train in this process. ConfigError for a non-finite loss; KeyboardInterrupt after a Ctrl-C and a saved checkpoint."""
    log = Log(checkpoint.parent)
    log.rewind(trainer.update_index)

    def on_record(record: TrainingRecord) -> None:
        log.append(record)
        lines.show(record)

    with whole_updates() as stop:
        try:
            run_updates(trainer, checkpoint, asked_to_stop=stop.is_set, on_record=on_record)
        except FloatingPointError as error:
            raise diverged(str(error), checkpoint) from error
    if stop.is_set():
        raise KeyboardInterrupt
