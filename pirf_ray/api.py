"""The Python API, without a command line and without Ray: load, generate, evaluate, fine-tune in this process.

>>> import pirf_ray
>>> model = pirf_ray.load("Burgers-v0")
>>> tuned = pirf_ray.fine_tune(model, updates=20, learning_rate=2e-4)  # doctest: +SKIP
>>> fields = tuned.generate(64)  # doctest: +SKIP
>>> tuned.evaluate(samples=64, real=256).result["tuned"].residuals["consistent"].mean  # doctest: +SKIP
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from envs.pdes import register as register_pde
from envs.rewards import Reward
from envs.rewards import register as register_reward
from pirf_ray.diffusion import model as handle
from pirf_ray.diffusion.sampling import SamplerSettings
from pirf_ray.evaluation.models import GENERATE_STREAM, Evaluation, evaluate_model
from pirf_ray.learning.objectives import register as register_objective
from pirf_ray.methods import register as register_method
from pirf_ray.metrics import find_metrics
from pirf_ray.training.finetuning import OnRecord, local_tuning
from pirf_ray.training.models import load_model, tuned_model
from pirf_ray.training.presets import small
from pirf_ray.training.runs import RunDirectory
from pirf_ray.training.settings import TrainConfig

__all__ = [
    "Evaluation",
    "Model",
    "TrainConfig",
    "configure",
    "fine_tune",
    "load",
    "register_method",
    "register_objective",
    "register_pde",
    "register_reward",
]


@dataclass(frozen=True, kw_only=True)
class Model(handle.Model):
    """A base or fine-tuned model, ready to sample."""

    def generate(self, num_samples: int, *, seed: int = 0) -> torch.Tensor:
        """Return samples (num_samples, c, h, w), physical units, float32. Sample i depends on seed and i alone."""
        return self.sample(range(num_samples), seed=seed, stream=GENERATE_STREAM)[handle.TUNED]

    def evaluate(
        self,
        *,
        samples: int = 256,
        real: int = 1024,
        seed: int = 0,
        data: Path | None = None,
        metrics: Sequence[str] = (),
        reward: Reward | None = None,
    ) -> Evaluation:
        """Measure base and tuned model against held-out real data.

        ``data``: file of these data, which a PDE without a solver needs. ``metrics``: names of further metrics. ``reward``: a reward
        whose mean over each set is the metric ``reward``.
        """
        found = find_metrics(metrics)
        return evaluate_model(self, samples=samples, real=real, seed=seed, data=data, metrics=found, reward=reward)


def _public(model: handle.Model) -> Model:
    return Model(**{f.name: getattr(model, f.name) for f in fields(handle.Model)})


def load(source: str | Path, *, resolution: int | None = None, sampler: SamplerSettings | None = None) -> Model:
    """Load a shipped base model by its env id (``Burgers-v0``), or a run, checkpoint or base model by its path.

    ``resolution``: of a shipped model; default: the smallest. ``sampler``: other steps than the model's own.
    CheckpointError names what is wrong.
    """
    model = _public(load_model(source, resolution=resolution).model)
    return model if sampler is None else replace(model, sampler=sampler)


def configure(env: str, **settings: Any) -> TrainConfig:
    """Return the small preset with some settings changed, named as flags: ``configure(env, truncation=2, l2=1.0)``.

    One worker, since ``fine_tune`` learns in this process. ValueError on an unknown setting.
    """
    return small(env).with_settings(**{"workers": 1, **settings})


def fine_tune(
    model: handle.Model,
    *,
    config: TrainConfig | None = None,
    run: RunDirectory | None = None,
    reward: Reward | None = None,
    on_record: OnRecord | None = None,
    **settings: Any,
) -> Model:
    """Fine-tune a base model in this process; return the guard's best model. Give ``config`` or settings as in ``configure``.

    ``reward``: default the PDE's own, by the settings. ``on_record``: called with the record of each update.
    """
    if config is not None and settings:
        raise ValueError(f"give config or single settings, not both: {', '.join(sorted(settings))}")
    config = config or configure(model.info.env_id, resolution=model.info.resolution, **settings)
    tuning = local_tuning(config, model.info, model.policy.base, run=run, reward=reward)
    tuning.fit(on_record)
    return _public(tuned_model(config, model.info, tuning.kept_policy()))
