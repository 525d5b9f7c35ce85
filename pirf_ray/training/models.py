"""The one loader: a model of a run, of one of its checkpoints, of a base model, or of a shipped model's name."""

from dataclasses import dataclass, replace
from pathlib import Path

from envs.pdes import REGISTRY
from pirf_ray import zoo
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError, ModelInfo, fingerprint
from pirf_ray.diffusion.model import Finisher, Model
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import SamplerSettings
from pirf_ray.learning.parameters.attach import tuned_policy
from pirf_ray.steering.correction import Correction, CorrectionSettings
from pirf_ray.training.runs import BEST, RunDirectory
from pirf_ray.training.settings import TrainConfig


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model and the settings of the run that tuned it; a base model has none."""

    model: Model
    config: TrainConfig | None


def load_model(source: str | Path, *, resolution: int | None = None) -> LoadedModel:
    """Load a model for sampling. ``source``: a shipped model's env id, or the path of a run, a checkpoint or a base model.

    ``resolution``: of a shipped model; default: the only one that ships. CheckpointError names what is wrong.
    """
    path = find_checkpoint(source, resolution)
    info, meta = checkpoints.load_meta(path)
    if meta["kind"] == "base":
        policy = Policy(checkpoints.load_denoiser(path)[1])
        return LoadedModel(model=Model(info=info, policy=policy, sampler=SamplerSettings()), config=None)
    run = RunDirectory.open(path.parent.parent, given=None, sampling=True)
    base_info, base = run.load_base()
    if fingerprint(base.identity()) != meta["reference"] or base_info != info:
        raise CheckpointError(f"{run.paths.base}: not the base model that {path} was tuned from")
    config = run.config
    policy = tuned_policy(base, config.process, config.policy, config.learning_parameters)
    policy.load_learned(checkpoints.load_weights(path, "ema"))
    return LoadedModel(model=tuned_model(run.config, info, policy), config=run.config)


def tuned_model(config: TrainConfig, info: ModelInfo, policy: Policy) -> Model:
    """Return the model of a run's settings and of a policy with its learned weights."""
    operator = config.operator
    return Model(
        info=info,
        policy=policy,
        sampler=config.sampler,
        finisher=make_finisher(info, config.correction, operator),
        operator=operator,
    )


def make_finisher(info: ModelInfo, settings: CorrectionSettings, operator: str) -> Finisher | None:
    """Return what ends the samples: corrections by the operator, or nothing."""
    return Correction(info.pde(), settings.corrections, operator) if settings.corrections else None


def with_sampling(model: Model, *, num_steps: int | None, corrections: int | None) -> Model:
    """Return the model with another number of steps or corrections; None leaves the model's own."""
    if num_steps is not None:
        model = replace(model, sampler=replace(model.sampler, num_steps=num_steps))
    if corrections is not None:
        finisher = make_finisher(model.info, CorrectionSettings(corrections=corrections), model.operator)
        model = replace(model, finisher=finisher)
    return model


def find_checkpoint(source: str | Path, resolution: int | None = None) -> Path:
    """Return the checkpoint that a source means: a shipped model, a run's kept checkpoint, or a checkpoint itself."""
    path = Path(source)
    if str(source) in REGISTRY and not path.exists():
        return zoo.find(str(source), resolution)
    if (path / checkpoints.META).is_file():
        return path
    best = path / "checkpoints" / BEST
    if (path / checkpoints.CONFIG).is_file() and best.is_dir():
        return best
    if not path.exists():
        shipped = ", ".join(sorted({env for env, _ in zoo.shipped()}))
        raise CheckpointError(f"{path}: no such checkpoint or run directory, and no shipped model (there is: {shipped})")
    raise CheckpointError(f"{path}: neither a checkpoint nor a run with a kept checkpoint")
