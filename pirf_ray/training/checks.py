"""Everything that could stop a new run, checked before anything is started."""

from collections.abc import Iterable
from pathlib import Path

from envs.common.checks import ConfigError
from envs.common.registry import named_modules
from envs.data.datasets import validate
from pirf_ray import zoo
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError, ModelInfo
from pirf_ray.learning.objectives import find_objective
from pirf_ray.learning.parameters import layers
from pirf_ray.training.settings import TrainConfig


def check_base(path: Path, config: TrainConfig) -> ModelInfo:
    """Check that a base model fits the run. CheckpointError names the file."""
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
    layers.learning_names(denoiser, config.parameters.levels)
    return info


def check(config: TrainConfig, *, base: Path | None, data: Path | None) -> Path:
    """Check what a new run needs; return the base model's directory."""
    path = base if base is not None else zoo.find(config.env, config.resolution)
    pde = check_base(path, config).pde()
    find_objective(config.objective)
    config.reward.check(pde)
    if data is not None:
        validate(data, pde)
    return path


def check_named(objectives: Iterable[str], file: Path, given: str = "") -> None:
    """Raise ConfigError if a settings file names a module that the user did not name, as ``given`` or before.

    A settings file decides about no import.
    """
    for objective in objectives:
        module, colon, _ = objective.rpartition(":")
        if colon and objective != given and module not in named_modules():
            raise ConfigError(f"{file}: names code of the module {module!r}; if it is yours, name it too: PIRF_RAY_PDES={module}")
