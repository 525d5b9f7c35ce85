"""Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), with the base model as the unconditional one.

    D = D_base + scale (D_tuned - D_base)

The scale 1 is the tuned model, 0 the base model. A larger scale goes beyond the tuned model. The tuned model may be any:
conditioned (PG-Diffusion: Shu et al. 2023, J. Comput. Phys. 478, 111972) or fine-tuned by reward.
"""

from dataclasses import dataclass
from functools import partial

import torch

from envs.common.checks import not_negative
from envs.common.parts import PartSettings
from envs.denoising import Denoise, DenoisingProcess
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import SAMPLERS, SampleBatch, finish, step_noise


@dataclass(frozen=True, kw_only=True)
class ClassifierFreeSettings(PartSettings):
    """Settings of classifier-free guidance."""

    scale: float = 1.0
    """How far from the base model to the tuned model and beyond. 0 is the base model, 1 the tuned model."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "scale")


@SAMPLERS.register("classifier-free")
class ClassifierFree:
    """Steps of the process with the tuned model's change of the base model scaled (classifier-free guidance)."""

    Settings = ClassifierFreeSettings

    def __init__(self, settings: ClassifierFreeSettings, policy: Policy, batch: SampleBatch | None = None) -> None:
        """Set the scale and the policy. ``batch``: the samples, which stochastic steps and conditions need."""
        self.settings, self.policy, self.batch = settings, policy, batch

    def for_batch(self, batch: SampleBatch) -> "ClassifierFree":
        """Return the sampler of the samples of a batch."""
        return ClassifierFree(self.settings, self.policy, batch)

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        """Return the samples x_0 (b, c, h, w) of standard normal noise, model units. ValueError if it draws for unknown samples."""
        condition = self.batch.condition if self.batch else None
        start = self.policy.initial(process, noise, condition) if self.settings.scale else process.initial(noise)
        base = partial(self.policy.base, condition=condition)
        tuned_from = self.policy.denoisers(process, condition)
        return finish(process, lambda sigma: self.between(base, tuned_from(sigma)), start, step_noise(process, self.batch, noise))

    def between(self, base: Denoise, tuned: Denoise) -> Denoise:
        """Return D at the scale. Only the denoisers that it needs are evaluated."""
        scale = self.settings.scale
        if scale == 1 or getattr(tuned, "func", tuned) is self.policy.base:  # a step that the base model makes
            return tuned
        if scale == 0:
            return base

        def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
            conditioned, plain = tuned(x, sigma), base(x, sigma)
            return plain + scale * (conditioned - plain)

        return denoise
