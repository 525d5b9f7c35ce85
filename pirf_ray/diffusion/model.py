"""The model: one handle for everything that makes samples. Every command samples through it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from envs.denoising import DenoisingProcess
from envs.numerics.conditions import Condition
from envs.pdes import PDE
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import (
    Progress,
    SampleBatch,
    Sampler,
    SamplerSettings,
    advance,
    finish,
    for_batch,
    noise_batches,
    step_noise,
)

BASE, TUNED, BASE_FINISHED = "base", "tuned", "base corrected"
"""Groups of samples: of the base model, of the tuned model, and of the base model with the tuned model's finisher."""
MAKERS = {BASE: BASE, TUNED: TUNED, BASE_FINISHED: BASE}
"""Model, base or tuned, that makes the samples of each group."""


class Finisher(Protocol):
    """Last part of sampling: a correction, a projection or a solver of finished samples."""

    steps: int
    """Number of its steps, recorded beside the samples."""

    def __call__(self, x: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
        """Return the finished samples of x (b, c, h, w), model units. The result of a sample depends on this sample only.

        ``condition``: what is known of the samples, one row per sample.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class Model:
    """Policy, sampler and finisher of one PDE, ready to sample.

    ``pirf_ray.training.models.load_model`` makes it from a run, a checkpoint or a shipped model.
    """

    info: ModelInfo
    """PDE, architecture and normalization."""
    policy: Policy
    """Base and tuned denoiser."""
    sampler: SamplerSettings
    """Steps of the sampler."""
    finisher: Finisher | None = None
    """Finisher of the tuned model's samples. None: samples stay as the sampler made them."""
    own_sampler: Sampler | None = None
    """Sampler of the tuned model's samples in place of the policy's steps, such as a guided sampler."""
    operator: str = ""
    """Residual operator of the reward. Empty: the PDE's default operator."""

    @cached_property
    def pde(self) -> PDE:
        """Return the PDE of the fields."""
        return self.info.pde()

    @property
    def rewarded_operator(self) -> str:
        """Return the residual operator of the reward, by default the PDE's default operator."""
        return self.operator or self.pde.default_operator

    @property
    def process(self) -> DenoisingProcess:
        """Return the denoising process with the sampler's steps."""
        return self.sampler.process(self.pde)

    def to(self, device: torch.device | str) -> "Model":
        """Move the weights to a device and return the model."""
        self.policy.to(device)
        return self

    @torch.no_grad()
    def sample(
        self,
        sample_ids: Sequence[int],
        *,
        seed: int,
        stream: str,
        groups: Sequence[str] = (TUNED,),
        batch: int = 64,
        progress: Progress = iter,
    ) -> dict[str, torch.Tensor]:
        """Return the fields (len(sample_ids), c, h, w) of each group, physical units, float32, on the CPU.

        All groups start from the same noise. The noise of sample i depends on seed, stream and i only. ValueError for an
        unknown group, and for the group ``base corrected`` of a model without a finisher.
        """
        unknown = [group for group in groups if group not in MAKERS]
        if unknown:
            raise ValueError(f"unknown group of samples {unknown[0]!r}; known: {', '.join(MAKERS)}")
        if self.finisher is None and BASE_FINISHED in groups:
            raise ValueError(f"{BASE_FINISHED} samples need a finisher")
        process = self.process
        made: dict[str, list[torch.Tensor]] = {group: [] for group in groups}
        noises = noise_batches(
            self.pde.shape,
            seed=seed,
            stream=stream,
            sample_ids=sample_ids,
            batch=batch,
            device=self.policy.device,
            progress=progress,
        )
        done = 0
        for noise in noises:
            samples = SampleBatch(seed=seed, stream=stream, ids=sample_ids[done : done + len(noise)])
            for group, x in self._batch(process, noise, groups, samples).items():
                made[group].append(x.cpu())
            done += len(noise)
        return {group: self.pde.normalizer.to_physical(torch.cat(parts).float()) for group, parts in made.items()}

    def _batch(
        self, process: DenoisingProcess, noise: torch.Tensor, groups: Sequence[str], samples: SampleBatch
    ) -> dict[str, torch.Tensor]:
        """Return the samples of each group, model units. Steps that groups share are made once."""
        policy, own, makers = self.policy, self.own_sampler, {MAKERS[group] for group in groups}
        finisher = self.finisher or (lambda x: x)
        noise_at = step_noise(process, samples, noise)
        start = process.initial(noise)
        if own is None or BASE in makers:
            start = advance(process, policy.base_from, start, policy.switch_step(process), noise_at)
        made: dict[str, torch.Tensor] = {}
        if BASE in makers:
            made[BASE] = finish(process, policy.base_from, start, noise_at)
        if TUNED in makers and own:
            made[TUNED] = for_batch(own, samples)(process, noise)
        elif TUNED in makers:
            shared = start if start.step else policy.initial(process, noise)  # a tuned policy may draw its own first noise
            made[TUNED] = finish(process, policy.denoisers(process), shared, noise_at)
        return {group: made[BASE] if group == BASE else finisher(made[MAKERS[group]]) for group in groups}
