"""PIDM, physics-informed diffusion models (Bastek et al. 2024, arXiv 2403.14404): the residual in the diffusion loss.

    loss = lambda(s) [ |D(y + s n; s) - y|^2 / d + w r(x_0) / q ],   lambda(s) = (s^2 + sd^2) / (s sd)^2,   d dimensions

lambda is one over the variance of x_0 given x for Gaussian data of standard deviation sd: the variance Sigma_t / c of the paper's
residual likelihood. ``mean``: x_0 = D(x; s). ``sample``: x_0 by two steps of the sampler, to s/2 and from there. r is the mean
square residual. q is what white noise of variance 1 (model units) adds to r on exact data. So w has no units: the residual counts
as the noise that would cause it.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from envs.common.checks import not_negative
from envs.pdes import PDE
from envs.pdes.base import require
from envs.rewards import calibrated_term
from envs.rewards.base import Reward
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.losses import Batch, Context, Loss
from pirf_ray.learning.objectives.base import Objective, register
from pirf_ray.learning.objectives.denoising import NoisedData, NoiseLawSettings, noised_data
from pirf_ray.metrics.cost import Cost, count_residual_gradients

PROBE_NOISE = 1e-3
"""Standard deviation of the white noise that measures q, model units."""


@dataclass(frozen=True, kw_only=True)
class PIDMSettings(NoiseLawSettings):
    """Settings of PIDM."""

    pidm_weight: float = 1e-2
    """w, the weight of the residual. 0 is the plain diffusion loss."""
    pidm_estimate: Literal["mean", "sample"] = "mean"
    """Field whose residual counts. mean: the denoised field. sample: the field after two steps, which costs a second evaluation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "pidm_weight")


@register("pidm")
class PIDM(Objective):
    """Diffusion loss on fields of the solver, with the residual of the denoised field beside it (PIDM)."""

    Settings = PIDMSettings
    settings: PIDMSettings
    context: Context
    makers = ("data",)
    behaviour = "base"
    needs_gradient = False

    def __init__(self, settings: PIDMSettings, context: Context) -> None:
        """Take the settings. NotProvided if the PDE has no residual operator or no solver."""
        super().__init__(settings, context)
        for part in ("operators", "solve"):
            require(context.pde, part, "--objective pidm")

    @cached_property
    def slope(self) -> float:
        """Return q, measured once."""
        return noise_slope(self.context.pde)

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        """Return the loss of the tuned denoiser. The residual is that of the PDE's default operator, not the reward."""
        data, tuned = noised_data(batch, self.settings, "pidm"), policies.tuned.tuned
        denoised = tuned(data.x, data.sigma, batch.rollouts.condition)
        error = data.error(denoised, tuned.sigma_data)
        if not self.settings.pidm_weight:
            return Loss(value=error.mean(), metrics={"denoising": error.detach()})
        residual = self._residual(self.estimate(tuned, data, denoised, batch))
        weighted = self.settings.pidm_weight * data.weight(tuned.sigma_data) * residual / self.slope
        return Loss(
            value=error.mean() + weighted.mean(),
            metrics={"denoising": error.detach()},
            violations={self.context.pde.default_operator: residual.detach()},
        )

    def estimate(self, denoiser: AbstractDenoiser, data: NoisedData, denoised: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Return x_0 (b, c, h, w) whose residual counts, on the graph of all its evaluations."""
        if self.settings.pidm_estimate == "mean":
            return denoised
        half = 0.5 * (data.x + denoised)  # Euler's step from s to s/2
        estimated: torch.Tensor = denoiser(half, 0.5 * data.sigma, batch.rollouts.condition)
        return estimated

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        pde = self.context.pde
        residual = pde.residual(pde.normalizer.to_physical(x), pde.default_operator)
        count_residual_gradients(residual)
        return residual

    def cost(self, batch: Batch) -> Cost:
        """Return the evaluations of the estimate, all with gradient."""
        two = self.settings.pidm_weight > 0 and self.settings.pidm_estimate == "sample"
        count = len(batch) * (2 if two else 1)
        return Cost(network_forwards=count, network_gradients=count)


def noise_slope(pde: PDE) -> float:
    """Return the mean residual that white noise adds to exact data, over its variance in model units."""
    term = calibrated_term(pde, pde.default_operator, reference_noise=PROBE_NOISE)
    return (term.reference - term.floor) / PROBE_NOISE**2
