"""The run directory: written during the run, so that nothing already computed is lost.

``config.json``, ``base/`` (the pretrained model), ``checkpoints/update_*`` and ``checkpoints/best`` (the kept model),
``metrics.jsonl`` (one record per update), ``tensorboard/``, ``samples.h5``, ``result.json``, ``report.png``.
"""

import logging
import shutil
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from envs.common.files import FileFormatError, locked, read_json, refuse_existing, staged_directory, write_json
from envs.common.journals import Journal
from envs.rewards import located
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError, ModelInfo
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.training.checks import check_named
from pirf_ray.training.outcome import Outcome
from pirf_ray.training.records import UpdateRecord
from pirf_ray.training.settings import TrainConfig, for_sampling, named_parts

KEPT_CHECKPOINTS = 2
BEST = "best"
STOP_FILE, FAILURE_FILE = ".stop", ".failure"
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RunPaths:
    """Paths of a run directory's files."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.root / "samples.h5"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def outcome(self) -> Path:
        return self.root / "outcome.json"

    @property
    def report(self) -> Path:
        return self.root / "report.png"


def load_settings(path: Path, given: Iterable[str] | None = (), *, sampling: bool = False) -> TrainConfig:
    """Return the settings of a run's config.json; CheckpointError if it is not one.

    ConfigError if it names code that the user did not name (``given``): a settings file decides about no import. ``given`` None:
    a caller that starts no program, or that has checked the file before. ``sampling``: only samples are made, so parts of the
    training whose code the user did not name are left out.
    """
    try:
        data = for_sampling(read_json(path)) if sampling else read_json(path)
        check_named(named_parts(data), path, given)
        return TrainConfig.from_json(data)
    except FileFormatError as error:
        raise CheckpointError(str(error)) from None
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a run's settings ({error})") from None


class RunDirectory:
    """One run's files. ``create`` starts a run, ``open`` continues one."""

    def __init__(self, root: Path, config: TrainConfig) -> None:
        self.paths = RunPaths(root=root)
        self.config = config
        self.journal = Journal(self.paths.metrics)

    @classmethod
    def create(cls, root: Path, config: TrainConfig, base: Path) -> "RunDirectory":
        """Make the directory, copy the base model into it. DirectoryTakenError if it is not empty."""
        refuse_existing(root)
        # a program is started where the user named it: workers and later commands run elsewhere
        config = replace(config, reward_settings=located(config.reward_settings))
        run = cls(root, config)
        run.paths.checkpoints.mkdir(parents=True, exist_ok=True)
        with staged_directory(run.paths.base) as staging:
            for name in (checkpoints.META, checkpoints.CONFIG, checkpoints.EMA):
                shutil.copyfile(base / name, staging / name)
        write_json(run.paths.config, config.to_json())
        return run

    @classmethod
    def open(cls, root: Path, given: Iterable[str] | None = (), *, sampling: bool = False) -> "RunDirectory":
        """Return an existing run; CheckpointError if there is none. ``given``: names of parts that the user named."""
        return cls(root, load_settings(RunPaths(root=root).config, given, sampling=sampling))

    def locked(self, patience: float = 0.0) -> AbstractContextManager[None]:
        """Lock the run; DirectoryTakenError if another process has it for longer than ``patience`` seconds."""
        return locked(self.paths.root, "this run", patience)

    @property
    def stop_file(self) -> Path:
        """Return the file that asks the learner to end after its update, with a checkpoint."""
        return self.paths.root / STOP_FILE

    @property
    def failure_file(self) -> Path:
        """Return the file in which the learner names an error that no restart mends."""
        return self.paths.root / FAILURE_FILE

    def load_base(self) -> tuple[ModelInfo, Denoiser]:
        """Return the base model."""
        return checkpoints.load_denoiser(self.paths.base)

    def write_outcome(self, guard: dict[str, Any], *, updates: int, finished: bool, **counts: int) -> None:
        """Write how the training ended, for whoever started it. ``guard``: the guard's state."""
        write_json(self.paths.outcome, {"updates": updates, "finished": finished, "guard": guard, **counts})

    def outcome(self) -> Outcome:
        """Read how the training ended."""
        return Outcome.from_json(read_json(self.paths.outcome), guarded=self.config.guard.guard == "enforce")

    def save(self, name: str, info: ModelInfo, learned: "Learned", meta: dict[str, Any]) -> Path:
        """Write checkpoints/<name> and drop the oldest numbered ones."""
        path = self.paths.checkpoints / name
        config = self.config.to_json()
        checkpoints.save(path, info=info, model=learned.model, ema=learned.ema, optimizer=learned.state, config=config, meta=meta)
        for old in self._numbered()[:-KEPT_CHECKPOINTS]:
            shutil.rmtree(old)
        return path

    def _numbered(self) -> list[Path]:
        return sorted(self.paths.checkpoints.glob("update_*"))

    def newest(self) -> Path | None:
        """Return the newest numbered checkpoint; None if there is none."""
        saved = self._numbered()
        return saved[-1] if saved else None

    def latest(self) -> tuple["Learned", dict[str, Any]] | None:
        """Return the newest readable checkpoint and its meta; a damaged one is named in the log and passed over."""
        for path in reversed(self._numbered()):
            try:
                _, meta = checkpoints.load_meta(path)
                return Learned.load(path), meta
            except ValueError as error:
                log.warning("%s; using the checkpoint before it", error)
        return None

    def rewind_metrics(self, update: int) -> None:
        """Drop the records of updates after ``update``, which will be made again, and a half-written last line."""
        self.journal.rewind(lambda record: record["update"] <= update)

    def history(self) -> list[UpdateRecord]:
        """Return the records of metrics.jsonl."""
        return [UpdateRecord.from_json(record) for record in self.journal.records()]


class Learned:
    """What a tuned checkpoint holds: learning tensors, their average, the optimizer's state."""

    def __init__(self, model: dict[str, torch.Tensor], ema: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        self.model, self.ema, self.state = model, ema, state

    @classmethod
    def load(cls, path: Path) -> "Learned":
        """Read a tuned checkpoint; CheckpointError if it is damaged."""
        model, ema = checkpoints.load_weights(path, "model"), checkpoints.load_weights(path, "ema")
        return cls(model, ema, checkpoints.load_optimizer(path))
