"""The Python API, without a command line and without Ray: load, generate, evaluate, fine-tune in this process.

from pirf_ray import api
model = api.load("Burgers-v0")
tuned = api.fine_tune(model, updates=20, learning_rate=2e-4)
fields = tuned.generate(64)
print(tuned.evaluate(samples=64, real=256).result["tuned"]["residual/consistent/mean"])
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from envs.denoising import DenoisingProcess
from envs.pdes import REGISTRY
from envs.rewards import PhysicsReward
from pirf_ray import zoo
from pirf_ray.checkpoints import ModelInfo
from pirf_ray.communication import SingleProcess
from pirf_ray.config import SamplerSettings, TrainConfig
from pirf_ray.correction import make_correction
from pirf_ray.evaluation.run import Evaluation, evaluate_policy
from pirf_ray.finetuning import FineTuning, Record
from pirf_ray.learner import make_policy
from pirf_ray.policy import Policy
from pirf_ray.presets import small
from pirf_ray.rollout import generate
from pirf_ray.runs import RunDirectory, load_policy
from pirf_ray.sources import LocalSource

DEFAULT_RESOLUTION = 32


@dataclass(frozen=True, kw_only=True)
class Model:
    """A base or fine-tuned model, ready to sample."""

    info: ModelInfo
    policy: Policy
    sampler: SamplerSettings

    def generate(self, num_samples: int, *, seed: int = 0) -> torch.Tensor:
        """Samples (num_samples, c, h, w), physical units, float32. Sample i depends on seed and i alone."""
        pde = self.info.pde()
        process = DenoisingProcess(self.sampler.num_steps, self.sampler.solver)
        ids = range(num_samples)
        correction = make_correction(pde, self.sampler.corrections) if self.sampler.corrections else None
        outputs = generate(
            self.policy,
            process,
            shape=pde.shape,
            seed=seed,
            stream="generate",
            sample_ids=ids,
            groups=("tuned",),
            correction=correction,
        )
        return pde.normalizer.to_physical(outputs["tuned"])

    def evaluate(self, *, samples: int = 256, real: int = 1024, seed: int = 0) -> Evaluation:
        """Figures of base and tuned model against held-out solver data."""
        return evaluate_policy(self.info.pde(), self.policy, self.sampler, samples=samples, real=real, seed=seed)


def load(source: str | Path, *, resolution: int = DEFAULT_RESOLUTION, sampler: SamplerSettings | None = None) -> Model:
    """A shipped base model by its env id (``Burgers-v0``), or a run, checkpoint or base model by its path."""
    path = zoo.find(source, resolution) if source in REGISTRY and isinstance(source, str) else Path(source)
    info, policy, config = load_policy(path)
    if sampler is None:
        sampler = config.sampler if config else SamplerSettings()
    return Model(info=info, policy=policy, sampler=sampler)


def configure(env: str, **settings: Any) -> TrainConfig:
    """The small preset with some settings changed, named as on the command line: ``configure(env, truncation=2, l2=1.0)``.

    Raises ValueError on an unknown setting.
    """
    return small(env).with_settings(**settings)


def fine_tune(
    model: Model,
    *,
    config: TrainConfig | None = None,
    run: RunDirectory | None = None,
    reward: PhysicsReward | None = None,
    on_record: Callable[[Record], None] | None = None,
    **settings: Any,
) -> Model:
    """Fine-tune a base model in this process; returns the guard's best model. Either ``config`` or settings as in ``configure``.

    ``reward``: default the PDE's own, by the settings.
    """
    if config is not None and settings:
        raise ValueError(f"give config or single settings, not both: {', '.join(sorted(settings))}")
    config = config or configure(model.info.env_id, resolution=model.info.resolution, **settings)
    base = model.policy.base
    device = next(base.parameters()).device
    source = LocalSource(config, make_policy(config, base), str(device))
    tuning = FineTuning(
        config, model.info, base, source=source, communicator=SingleProcess(), device=device, run=run, reward=reward
    )
    tuning.fit(on_record)
    return Model(info=model.info, policy=tuning.kept_policy(), sampler=config.sampler)
