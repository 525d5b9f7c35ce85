"""A whole run, from the driver's side: check, fine-tune on Ray, evaluate, draw."""

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from envs.datasets import validate
from envs.plugins import named_modules
from pirf_ray import checkpoints, truncation, zoo
from pirf_ray.checkpoints import CheckpointError, ModelInfo
from pirf_ray.communication import SingleProcess
from pirf_ray.config import ConfigError, TrainConfig
from pirf_ray.evaluation.run import Evaluation, Progress, evaluate_policy
from pirf_ray.finetuning import FineTuning, Record
from pirf_ray.learner import make_policy
from pirf_ray.objectives import find_objective
from pirf_ray.runs import RunDirectory, load_policy
from pirf_ray.sources import LocalSource

log = logging.getLogger(__name__)
SHOWN_SAMPLES = 64


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    updates: int
    finished: bool
    stopped_by_guard: bool
    kept_update: int
    actors_lost: int
    guarded: bool = True

    def sentence(self, asked: int) -> str:
        """How the run ended, for the user."""
        lost = f"; {self.actors_lost} rollout actors were lost on the way and their work redone" if self.actors_lost else ""
        return self._ending(asked) + lost

    def _ending(self, asked: int) -> str:
        if self.stopped_by_guard:
            return (
                f"the fidelity guard ended the training after {self.updates} of {asked} updates; "
                f"kept is the best model inside its limits, of update {self.kept_update}"
            )
        kept = "the best one inside the guard's limits" if self.guarded else "the last one: no guard was enforced"
        return f"{self.updates} of {asked} updates; kept is update {self.kept_update}, {kept}"


def check_base(path: Path, config: TrainConfig) -> ModelInfo:
    """Everything about the base model that could stop a run, before anything is started. CheckpointError names the file."""
    info, meta = checkpoints.load_meta(path)
    if meta.get("kind") != "base":
        raise CheckpointError(f"--base {path}: a {meta.get('kind')} checkpoint, expected a base model")
    if info.env_id != config.env:
        raise CheckpointError(f"--base {path}: a model of {info.env_id}, expected {config.env}")
    if info.resolution != config.resolution:
        raise CheckpointError(
            f"--base {path}: a model at resolution {info.resolution}, expected --resolution {config.resolution}"
        )
    _, denoiser = checkpoints.load_denoiser(path)
    truncation.learning_names(denoiser, config.pirf.levels)
    return info


def check(config: TrainConfig, *, base: Path | None, data: Path | None) -> Path:
    """Validate what a new run needs; returns the base model's directory."""
    path = base if base is not None else zoo.find(config.env, config.resolution)
    pde = check_base(path, config).pde()
    find_objective(config.pirf.objective)
    operator = config.pirf.operator
    if operator and operator not in pde.operators:
        raise ConfigError(f"--operator {operator!r} is not one of {config.env}; known: {sorted(pde.operators)}")
    known = {*pde.operators, *pde.conditions}
    unknown = sorted(config.pirf.weights.keys() - known)
    if unknown:
        raise ConfigError(f"--weights: {config.env} has no term {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    if data is not None:
        validate(data, pde)
    return path


def check_named(objectives: Iterable[str], file: Path, given: str = "") -> None:
    """A settings file decides about no import: ConfigError if it names a module that the user, ``given`` or before, did not."""
    for objective in objectives:
        module, colon, _ = objective.rpartition(":")
        if colon and objective != given and module not in named_modules():
            raise ConfigError(f"{file}: names code of the module {module!r}; if it is yours, name it too: PIRF_RAY_PDES={module}")


def outcome(run: RunDirectory) -> Outcome:
    """Read back what the learner wrote at its end."""
    data = checkpoints.read_json(run.paths.outcome)
    guard = data["guard"]
    return Outcome(
        updates=data["updates"],
        finished=data["finished"],
        stopped_by_guard=guard["stopped"],
        kept_update=guard["kept_update"],
        actors_lost=data.get("actors_lost", 0),
        guarded=run.config.guard.guard == "enforce",
    )


def evaluate_run(run: RunDirectory, ending: Outcome, *, data: Path | None, progress: Progress) -> Evaluation:
    """Evaluate the kept model on seeds that nothing before has seen, write result.json, samples.h5 and report.png."""
    from pirf_ray.evaluation.report import draw_report  # matplotlib takes seconds to import
    from pirf_ray.evaluation.samples import write_samples

    config = run.config
    info, policy, _ = load_policy(run.paths.root)
    pde = info.pde()
    policy.to("cuda" if torch.cuda.is_available() else "cpu")
    e = config.evaluation
    evaluation = evaluate_policy(
        pde,
        policy,
        config.sampler,
        samples=e.samples,
        real=e.real,
        seed=config.seed,
        data=data,
        progress=progress,
        rewarded=config.pirf.operator or pde.default_operator,
    )
    result = {**evaluation.result, "kept_update": ending.kept_update, "ending": ending.sentence(config.optimizer.updates)}
    checkpoints.write_json(run.paths.result, result)
    write_samples(run.paths.samples, pde, evaluation.sets, {"seed": config.seed, "stream": "evaluation"})
    shown = {name: fields[:SHOWN_SAMPLES].numpy() for name, fields in evaluation.sets.items()}
    draw_report(run.paths.report, pde=pde, history=run.history(), result=result, samples=shown)
    return replace(evaluation, result=result)


def run_training(run: RunDirectory, *, address: str | None, on_poll: Callable[[], None]) -> Outcome:
    """Fine-tune on Ray to the end (or the guard's stop). KeyboardInterrupt after a clean, resumable stop."""
    from pirf_ray.distributed import driver  # Ray takes seconds to import, and bad input must be told before

    started = time.perf_counter()
    driver.connect(run.config, address)
    log.info("Ray is up after %.1f s", time.perf_counter() - started)
    driver.run_distributed(run, on_poll)
    return outcome(run)


def train_here(run: RunDirectory, *, device: str = "cpu", on_record: Callable[[Record], None] | None = None) -> Outcome:
    """Fine-tune in this process, without Ray, to the end (or the guard's stop), from the run's newest checkpoint on."""
    config = run.config
    info, base = run.load_base()
    base.to(device)
    source = LocalSource(config, make_policy(config, base), device)
    communicator = SingleProcess()
    tuning = FineTuning(config, info, base, source=source, communicator=communicator, device=torch.device(device), run=run)
    guard = tuning.fit(on_record)
    if guard is None:
        raise RuntimeError("the only rank must have the guard's state")
    run.write_outcome(guard, updates=tuning.update, finished=tuning.finished)
    return outcome(run)


def absolute(path: Path) -> Path:
    """Ray's workers run in a session folder: they need absolute paths."""
    return path.expanduser().resolve()
