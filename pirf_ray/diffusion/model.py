"""The model: everything that makes samples, in one handle. Whoever samples for a user samples through it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch

from envs.denoising import DenoisingProcess
from envs.pdes import PDE
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import (
    Progress,
    Sampler,
    SamplerSettings,
    advance,
    finish,
    noise_batches,
)

BASE, TUNED, BASE_FINISHED = "base", "tuned", "base corrected"
"""Groups of samples: the base model's, the model's own, and the base model's finished like the model's own."""


class Finisher(Protocol):
    """Ends finished samples: a correction, a projection, a solver."""

    steps: int
    """Steps that it takes, as recorded beside the samples."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Return the finished samples of x (b, c, h, w), model units. No sample's result depends on another's."""
        ...


@dataclass(frozen=True, kw_only=True)
class Model:
    """Policy, sampler and finisher of one PDE: what a run, a checkpoint or a shipped model is, ready to sample."""

    info: ModelInfo
    """PDE, architecture and normalization."""
    policy: Policy
    """Base and tuned denoiser."""
    sampler: SamplerSettings
    """The sampler's steps."""
    finisher: Finisher | None = None
    """What ends each sample; None: samples stay as the sampler made them."""
    own_sampler: Sampler | None = None
    """What makes the model's own samples in place of the policy's steps, such as a guided sampler."""
    operator: str = ""
    """Residual operator that was rewarded; empty: the PDE's default."""

    @cached_property
    def pde(self) -> PDE:
        """Return the PDE of the model's fields."""
        return self.info.pde()

    @property
    def rewarded_operator(self) -> str:
        """Return the operator that was rewarded, or would be by default."""
        return self.operator or self.pde.default_operator

    @property
    def process(self) -> DenoisingProcess:
        """Return the denoising process of the sampler's steps."""
        return self.sampler.process()

    def to(self, device: torch.device | str) -> "Model":
        """Move the weights to a device."""
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
        """Return fields (len(sample_ids), c, h, w), physical units, float32, of each group, all from the same noise.

        Sample i depends on seed, stream and i alone. ValueError for the group ``base corrected`` without a finisher.
        """
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
        for noise in noises:
            for group, x in self._batch(process, noise, groups).items():
                made[group].append(x.cpu())
        return {group: self.pde.normalizer.to_physical(torch.cat(parts).float()) for group, parts in made.items()}

    def _batch(self, process: DenoisingProcess, noise: torch.Tensor, groups: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return the samples of each group, model units; the steps that base and policy share are made once."""
        policy = self.policy
        start = process.initial(noise)
        if self.own_sampler is None or set(groups) != {TUNED}:
            start = advance(process, policy.base_from, start, policy.switch_step(process))
        made: dict[str, torch.Tensor] = {}
        for group in groups:
            if group == TUNED and self.own_sampler is not None:
                x = self.own_sampler(process, noise)
            else:
                x = finish(process, policy.denoisers(process) if group == TUNED else policy.base_from, start)
            made[group] = x if self.finisher is None or group == BASE else self.finisher(x)
        return made
