"""The run directory: written as the run goes, so that nothing already computed is lost.

``config.json``, ``base/`` (the pretrained model), ``checkpoints/update_*`` and ``checkpoints/best`` (the one the guard
keeps), ``metrics.jsonl`` (a record an update), ``tensorboard/``, ``samples.h5``, ``result.json``, ``report.png``.
"""

import fcntl
import json
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from pirf_ray import checkpoints
from pirf_ray.checkpoints import CheckpointError, ModelInfo, fingerprint
from pirf_ray.config import RunPaths, TrainConfig
from pirf_ray.denoiser import Denoiser
from pirf_ray.guard import GuardState
from pirf_ray.learner import make_policy
from pirf_ray.policy import Policy

KEPT_CHECKPOINTS = 2
BEST = "best"
STOP_FILE = ".stop"
LOCK_POLL_SECONDS = 0.2
log = logging.getLogger(__name__)


class RunExistsError(FileExistsError):
    """The output directory holds another run, or something else."""


def config_from_json(data: dict[str, Any]) -> TrainConfig:
    """Inverse of TrainConfig.to_json."""
    groups = {f.name: f.default_factory for f in fields(TrainConfig) if callable(f.default_factory)}
    values = {name: type(groups[name]())(**value) if name in groups else value for name, value in data.items()}
    return TrainConfig(**values)


@contextmanager
def held(root: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Hold a directory against other processes; RunExistsError if one has it for longer than ``patience`` seconds.

    The lock is the kernel's: it goes with the process that holds it, however that ends.
    """
    give_up = time.monotonic() + patience
    with (root / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise RunExistsError(f"{root}: another process is running {what}") from None
                time.sleep(LOCK_POLL_SECONDS)
        yield


def load_settings(path: Path) -> TrainConfig:
    """A run's config.json; CheckpointError if it is not one."""
    try:
        return config_from_json(checkpoints.read_json(path))
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: not a run's settings ({error})") from None


def refuse_existing(root: Path) -> None:
    """RunExistsError if a new run cannot have this directory."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise RunExistsError(f"{root}: output directory holds another run; continue it with --resume, or choose another --out")


class RunDirectory:
    """One run's files. ``create`` starts one, ``open`` goes on with one."""

    def __init__(self, root: Path, config: TrainConfig) -> None:
        self.paths = RunPaths(root=root)
        self.config = config

    @classmethod
    def create(cls, root: Path, config: TrainConfig, base: Path) -> "RunDirectory":
        """Make the directory, copy the base model into it. RunExistsError if it is not empty."""
        refuse_existing(root)
        run = cls(root, config)
        run.paths.checkpoints.mkdir(parents=True, exist_ok=True)
        with checkpoints.staged_directory(run.paths.base) as staging:
            for name in (checkpoints.META, checkpoints.CONFIG, checkpoints.EMA):
                shutil.copyfile(base / name, staging / name)
        checkpoints.write_json(run.paths.config, config.to_json())
        return run

    @classmethod
    def open(cls, root: Path) -> "RunDirectory":
        """An existing run; CheckpointError if there is none."""
        return cls(root, load_settings(RunPaths(root=root).config))

    @contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[None]:
        """Hold the run; RunExistsError while another process does, for longer than ``patience`` seconds."""
        with held(self.paths.root, "this run", patience):
            yield

    @property
    def stop_file(self) -> Path:
        """Asks the learner to end after its update, with a checkpoint."""
        return self.paths.root / STOP_FILE

    def load_base(self) -> tuple[ModelInfo, Denoiser]:
        return checkpoints.load_denoiser(self.paths.base)

    def write_outcome(self, guard: GuardState, *, updates: int, finished: bool, **counts: int) -> None:
        """How the training ended, for whoever started it."""
        ending = {"updates": updates, "finished": finished, "guard": guard.to_json(), **counts}
        checkpoints.write_json(self.paths.outcome, ending)

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

    def latest(self) -> tuple["Learned", dict[str, Any]] | None:
        """The newest readable checkpoint and its meta; a damaged one is named in the log and passed over."""
        for path in reversed(self._numbered()):
            try:
                _, meta = checkpoints.load_meta(path)
                return Learned.load(path), meta
            except CheckpointError as error:
                log.warning("%s; using the checkpoint before it", error)
        return None

    def rewind_metrics(self, update: int) -> None:
        """Drop the records of updates after ``update``, which will be made again, and a half-written last line."""
        if not self.paths.metrics.exists():
            return
        kept = [line for line in self._complete_lines() if json.loads(line)["update"] <= update]
        with checkpoints.staged_file(self.paths.metrics) as partial:
            partial.write_text("".join(line + "\n" for line in kept))

    def _complete_lines(self) -> list[str]:
        text = self.paths.metrics.read_text()
        return text[: text.rfind("\n") + 1].splitlines()

    def history(self) -> list[dict[str, Any]]:
        """The records of metrics.jsonl."""
        return [json.loads(line) for line in self._complete_lines()] if self.paths.metrics.exists() else []


class Learned:
    """What a tuned checkpoint holds: learning tensors, their average, the optimizer's state."""

    def __init__(self, model: dict[str, torch.Tensor], ema: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        self.model, self.ema, self.state = model, ema, state

    @classmethod
    def load(cls, path: Path) -> "Learned":
        model, ema = checkpoints.load_weights(path, "model"), checkpoints.load_weights(path, "ema")
        return cls(model, ema, checkpoints.load_optimizer(path))


def resolve_checkpoint(path: Path) -> Path:
    """The checkpoint that a path means: itself, or of a run the guard's best one."""
    if (path / checkpoints.META).is_file():
        return path
    best = path / "checkpoints" / BEST
    if (path / checkpoints.CONFIG).is_file() and best.is_dir():
        return best
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint or run directory")
    raise CheckpointError(f"{path}: neither a checkpoint nor a run with a kept checkpoint")


def load_policy(path: Path) -> tuple[ModelInfo, Policy, TrainConfig | None]:
    """The policy of a run, of one of its checkpoints, or of a base model (whose config is None), for sampling."""
    path = resolve_checkpoint(path)
    info, meta = checkpoints.load_meta(path)
    if meta["kind"] == "base":
        return info, Policy(checkpoints.load_denoiser(path)[1]), None
    run = RunDirectory.open(path.parent.parent)
    base_info, base = run.load_base()
    if fingerprint(base.network.state_dict()) != meta["reference"] or base_info != info:
        raise CheckpointError(f"{run.paths.base}: not the base model that {path} was tuned from")
    policy = make_policy(run.config, base)
    policy.load_learned(checkpoints.load_weights(path, "ema"))
    policy.tuned.requires_grad_(False)
    return info, policy, run.config
