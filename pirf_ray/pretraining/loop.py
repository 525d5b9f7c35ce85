"""The pretraining loop: updates, checkpoints, progress, Ctrl-C. With Ray, the same loop runs in each Train worker."""

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
    """Data-parallel training over Ray Train."""

    workers: int = 0
    """Ray Train workers; each takes an equal share of every batch. 1: this process, without Ray. 0: as many as there are GPUs."""
    worker_cpus: float = 1.0
    """CPUs that Ray reserves for each worker, and its torch threads."""
    worker_gpus: int | None = None
    """GPUs of each worker, 0 or 1; default: 1 where there are GPUs."""
    max_failures: int = 3
    """Times the training may be restarted, from its last checkpoint, after a lost worker."""
    address: str | None = None
    """Ray cluster to train on, which must see OUT and the data under the same paths; default: start Ray on this machine."""

    def __post_init__(self) -> None:
        for name in ("workers", "worker_cpus", "max_failures"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"--{name.replace('_', '-')} must not be negative, got {getattr(self, name)}")
        if self.worker_gpus not in (None, 0, 1):
            raise ConfigError(f"--worker-gpus must be 0 or 1 (a worker computes on one GPU), got {self.worker_gpus}")

    @property
    def threads(self) -> int:
        return max(1, int(self.worker_cpus))


@dataclass(frozen=True, kw_only=True)
class TrainingRecord:
    """What pretrain.jsonl holds about once per second."""

    update: int
    """Updates made."""
    mean_loss: float | None
    """Running mean of the loss."""
    images_per_second: float
    """Images shown per second since the training began or was resumed."""

    def to_json(self) -> dict[str, Any]:
        """Return the record of pretrain.jsonl."""
        return dict(vars(self))


def begin(trainer: Pretrainer, checkpoint: Path, init: Path | None) -> None:
    """Go on from the checkpoint if there is one, else begin with the model ``init``, else with random weights."""
    if init is not None:
        trainer.start_from(init)
    if checkpoint.exists():
        given = trainer.init
        trainer.load(checkpoint)
        if init is not None and trainer.init != given:
            raise CheckpointError(f"{checkpoint}: began with {trainer.init or 'random weights'}, not with --init {init}")


def run_updates(
    trainer: Pretrainer, checkpoint: Path, *, asked_to_stop: Callable[[], bool], on_record: Callable[[TrainingRecord], None]
) -> None:
    """To the end, or until rank 0 is asked to stop; a checkpoint every 500 updates and at the end. Every rank runs it.

    Rank 0 alone writes, asks and records, about once a second. FloatingPointError (on every rank) for a non-finite loss.
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
    """Return the error of a non-finite loss."""
    kept = f"the last checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
    return ConfigError(f"{error}; {kept}")


class Log:
    """OUT/pretrain.jsonl: the training's records, appended by rank 0, read by whoever shows them."""

    def __init__(self, out: Path) -> None:
        self.journal = Journal(out / "pretrain.jsonl")

    def rewind(self, update: int) -> None:
        """Drop the records of updates after ``update``, which will be made again, and of failures."""
        self.journal.rewind(lambda record: record["update"] <= update and "error" not in record)

    def append(self, record: TrainingRecord) -> None:
        """Add a record."""
        self.journal.append(record.to_json())

    def fail(self, update: int, error: str) -> None:
        """Record that the training failed for good, which a restart would repeat."""
        self.journal.append({"update": update, "error": error})

    def latest(self) -> TrainingRecord | None:
        """Return the last record; None if there is none, or if it is of a failure."""
        record = self.journal.latest()
        return TrainingRecord(**record) if record and "error" not in record else None

    def failure(self) -> str | None:
        """Return what the training failed with, if that is the last record."""
        record = self.journal.latest()
        return record.get("error") if record else None


class Lines:
    """A line about the training every 15 seconds and at its end."""

    def __init__(self, updates: int, batch: int, console: Console) -> None:
        self.updates, self.batch, self.console = updates, batch, console
        self._printed = 0.0

    def show(self, record: TrainingRecord) -> None:
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
    """Ctrl-C sets the event and lets the update end, so that a resumed training has the bits of one never stopped.

    A second Ctrl-C stops at once.
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
    """Train in this process. KeyboardInterrupt after a stop with a checkpoint, ConfigError for a non-finite loss."""
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
