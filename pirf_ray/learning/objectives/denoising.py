"""The diffusion loss on data (Karras et al. 2022, arXiv 2206.00364, equation 2 and table 1), as in pretraining.

    loss = lambda(s) |D(y + s n; s) - y|^2 / d,   lambda(s) = (s^2 + sd^2) / (s sd)^2,   ln s ~ N(m, v^2),   d dimensions

A network with a conditioning of its own, such as ``--parameters residual-adapter``, learns with the conditioning and, for some
samples, without it: classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598).
"""

from dataclasses import dataclass

import torch

from envs.common.checks import positive, require
from envs.common.parts import PartSettings
from envs.numerics import seeding
from envs.numerics.conditions import Condition
from envs.rewards.base import Reward
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.losses import Batch, Loss
from pirf_ray.learning.objectives.base import Objective, register
from pirf_ray.learning.objectives.noising import sample_of
from pirf_ray.learning.parameters.residual_adapter import KEPT
from pirf_ray.metrics.cost import Cost


@dataclass(frozen=True, kw_only=True)
class NoiseLawSettings(PartSettings):
    """Settings of the law of noise levels in training on data."""

    noise_mean: float = -1.2
    """Mean of ln sigma (EDM)."""
    noise_std: float = 1.2
    """Standard deviation of ln sigma (EDM)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "noise_std")


@dataclass(frozen=True, kw_only=True)
class DenoisingSettings(NoiseLawSettings):
    """Settings of the diffusion loss."""

    condition_dropped: float = 0.1
    """Part of the samples whose network's own conditioning is left out."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.condition_dropped <= 1, f"--condition-dropped must be in [0, 1], got {self.condition_dropped}")


@dataclass(frozen=True, kw_only=True, eq=False)
class NoisedData:
    """Data fields with noise."""

    y: torch.Tensor
    """Fields (b, c, h, w), model units."""
    x: torch.Tensor
    """Noised fields y + s n (b, c, h, w)."""
    sigma: torch.Tensor
    """Noise levels s (b,)."""

    def weight(self, sigma_data: float) -> torch.Tensor:
        """Return lambda(s) (b,): one over the variance of y given x for Gaussian data of standard deviation sd."""
        return (self.sigma**2 + sigma_data**2) / (self.sigma * sigma_data) ** 2

    def error(self, denoised: torch.Tensor, sigma_data: float) -> torch.Tensor:
        """Return the diffusion loss (b,) of denoised fields (b, c, h, w)."""
        return self.weight(sigma_data) * (denoised - self.y).square().flatten(1).mean(1)


def noised_data(batch: Batch, settings: NoiseLawSettings, purpose: str) -> NoisedData:
    """Return the batch's fields with noise. The key and the sample ids decide noise and levels. ``purpose`` names the stream."""
    y = sample_of(batch).x
    stream = seeding.NoiseStream(batch.key[0], f"{purpose} {batch.stream}", batch.rollouts.sample_ids)
    sigma = (settings.noise_mean + settings.noise_std * stream.draw((1,))[:, 0]).exp().to(y)
    noise = stream.draw(tuple(y.shape[1:])).to(y)
    return NoisedData(y=y, x=y + sigma[:, None, None, None] * noise, sigma=sigma)


@register("denoising")
class Denoising(Objective):
    """Diffusion loss on fields of the solver, with the network's own conditioning left out for some (PG-Diffusion)."""

    Settings = DenoisingSettings
    settings: DenoisingSettings
    makers = ("data",)
    behaviour = "base"
    needs_gradient = False

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        """Return the diffusion loss of the tuned denoiser. The reward has no part in it."""
        data, tuned = noised_data(batch, self.settings, "denoising"), policies.tuned.tuned
        error = data.error(tuned(data.x, data.sigma, self._condition(batch)), tuned.sigma_data)
        return Loss(value=error.mean(), metrics={"denoising": error.detach()})

    def _condition(self, batch: Batch) -> Condition | None:
        """Return the batch's condition, with the mask of the samples whose network's own conditioning is kept."""
        condition, dropped = batch.rollouts.condition, self.settings.condition_dropped
        if not dropped:
            return condition
        stream = f"dropped conditions {batch.stream}"
        drawn = [seeding.generator(batch.key[0], stream, i).random() for i in batch.rollouts.sample_ids]
        return {**(condition or {}), KEPT: torch.tensor([float(u >= dropped) for u in drawn], device=sample_of(batch).x.device)}

    def cost(self, batch: Batch) -> Cost:
        """Return one evaluation per sample, with gradient."""
        return Cost(network_forwards=len(batch), network_gradients=len(batch))
