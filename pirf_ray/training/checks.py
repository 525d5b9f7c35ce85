"""Everything that could stop a new run, checked before anything is started."""

from collections.abc import Iterable
from pathlib import Path

from envs.common.checks import ConfigError
from envs.common.registry import named_modules
from envs.data.datasets import validate
from envs.denoising import DenoisingProcess
from envs.pdes import PDE
from envs.pdes.base import require
from envs.rewards import Reward, RewardSettings
from envs.rewards.finding import COMMAND
from pirf_ray import zoo
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError, ModelInfo
from pirf_ray.learning.losses import Context
from pirf_ray.learning.objectives import Objective
from pirf_ray.learning.parts import check_groups, check_reward
from pirf_ray.learning.regularizers import REGULARIZERS
from pirf_ray.learning.rollouts import MAKERS, Prefix
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
    config.learning_parameters.attach(denoiser)
    return info


def check_parts(config: TrainConfig, pde: PDE, reward: Reward) -> None:
    """Raise ConfigError, in one sentence, if the chosen parts do not fit together."""
    process = config.sampler.process(pde)
    parts = config.learning.parts.make(Context(process=process, pde=pde, truncation=config.truncation_steps))
    names = config.objective, config.credit_name
    check_reward(parts.objective, reward, (config.objective, config.reward))
    check_groups(parts.objective, parts.credit, group=config.rollout.group, micro_batch=config.optimizer.micro_batch, names=names)
    _check_process(config, parts.objective, process)
    _check_regularizers(config, process)
    _check_pde(config, pde)
    if reward.scope == "set":
        _check_sets(config, parts.objective)


def _check_pde(config: TrainConfig, pde: PDE) -> None:
    """Raise NotProvided if the guard or the corrections need a part that the PDE leaves out."""
    if config.guard.guard != "off":
        require(pde, "solve", "the guard", "give --guard off")
    if config.correction.corrections:
        require(pde, "operators", "corrections", "give --corrections 0")


def _check_process(config: TrainConfig, objective: Objective, process: DenoisingProcess) -> None:
    """Raise ConfigError if the objective cannot learn from the process."""
    if objective.stochastic and not process.stochastic:
        raise ConfigError(
            f"--objective {config.objective} needs log densities of steps: --solver stochastic, got {process.solver}"
        )
    if objective.deterministic and process.stochastic:
        raise ConfigError(f"--objective {config.objective} needs a deterministic solver, got --solver {process.solver}")
    if process.stochastic and config.truncation_steps < 2:
        raise ConfigError(
            f"--solver {process.solver}: the base model makes the last step, so --truncation must be at least 2, "
            f"got {config.truncation_steps}"
        )


def _check_regularizers(config: TrainConfig, process: DenoisingProcess) -> None:
    """Raise ConfigError if a regularizer compares samples of prefixes and there are none that can be compared."""
    needy = [name for name in config.regularizers if REGULARIZERS.find(name).needs_base_output(config.regularizers_settings)]
    if not needy:
        return
    others = " ".join(name for name in config.regularizers if name not in needy)
    instead = f"leave it out: --regularizers {others}".strip()
    if not issubclass(MAKERS.find(config.maker_name).makes, Prefix):
        raise ConfigError(f"--regularizers {needy[0]} needs prefixes, got --maker {config.maker_name}; {instead}")
    if process.stochastic:
        raise ConfigError(f"--regularizers {needy[0]} needs a deterministic solver, got --solver {process.solver}; {instead}")


def _check_sets(config: TrainConfig, objective: Objective) -> None:
    """Raise ConfigError if a reward of sets would not get whole groups."""
    group, micro_batch = config.rollout.group, config.optimizer.micro_batch
    if group < 2:
        raise ConfigError(f"--reward {config.reward} rewards sets of samples: --group must be at least 2, got {group}")
    if objective.needs_gradient and micro_batch % group:
        raise ConfigError(
            f"--reward {config.reward} rewards sets of samples: --micro-batch must be a multiple of --group {group}, got {micro_batch}"
        )


def check(config: TrainConfig, *, base: Path | None, data: Path | None) -> Path:
    """Check what a new run needs; return the base model's directory."""
    path = base if base is not None else zoo.find(config.env, config.resolution)
    pde = check_base(path, config).pde()
    if isinstance(config.reward_settings, RewardSettings):
        config.reward_settings.check(pde)
    try:
        reward = config.make_reward(pde)
    except TypeError as error:  # an object that is not a reward
        raise ConfigError(f"--reward {config.reward}: {error}") from None
    check_parts(config, pde, reward)
    if data is None:
        require(pde, "solve", "the final evaluation", "give held-out fields: --data FILE")
    else:
        validate(data, pde)
    return path


def check_named(names: Iterable[str], file: Path, given: Iterable[str] | None = ()) -> None:
    """Raise ConfigError if a settings file names a module or a program that the user did not name, as ``given`` or before.

    A settings file decides about no import and starts no program. ``given`` None: programs are not checked, since none is started.
    """
    named = () if given is None else tuple(given)
    for name in names:
        module, colon, _ = name.rpartition(":")
        if not colon or name in named:
            continue
        if name.startswith(COMMAND):
            if given is None:
                continue
            raise ConfigError(f"{file}: names the program {name!r}; if it is yours, name it too: --reward {name!r}")
        if module not in named_modules():
            raise ConfigError(f"{file}: names code of the module {module!r}; if it is yours, name it too: PIRF_RAY_PDES={module}")
