"""PIDM, physics-informed diffusion models (Bastek et al. 2024, arXiv 2403.14404): the residual in the diffusion loss.

    lambda(s) [ ||D(y + s n; s) - y||^2 + weight r(x_0) / slope ],  lambda(s) = (s^2 + sd^2) / (s sd)^2

lambda is one over the variance of x_0 given x of Gaussian data of standard deviation sd: their residual likelihood's
variance Sigma_t / c. ``mean``: x_0 = D(x; s). ``sample``: x_0 by two steps of the sampler, to s/2 and from there. r is the
mean square residual, slope what white noise of variance 1 (model units) adds to it on exact data, so that ``weight`` is
dimensionless: the residual counts as the noise that would cause it.
"""

import copy
from abc import abstractmethod
from collections.abc import Mapping

import torch

from envs.common.search import Range, Spec
from envs.rewards import calibrated_term
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import PolicySampler, Sampler
from pirf_ray.methods.base import Method, Problem, Settings, Weights, register
from pirf_ray.methods.solver_data import Batch, SolverBatches, minimize, updates_for
from pirf_ray.metrics.cost import GRADIENT_COST

PROBE_NOISE = 1e-3
"""Standard deviation of the white noise that measures the slope, model units."""


def noise_slope(problem: Problem) -> float:
    """Return the mean residual that white noise adds to exact data over its variance (model units)."""
    term = calibrated_term(problem.pde, problem.pde.default_operator, reference_noise=PROBE_NOISE)
    return (term.reference - term.floor) / PROBE_NOISE**2


class PIDM(Method):
    """All layers learn; the tuned weights act at every sigma."""

    trains = True
    source = "Bastek et al. 2024, arXiv 2403.14404"
    evaluations: int
    """Network evaluations of a training sample."""

    def defaults(self, problem: Problem) -> Settings:
        return {"learning_rate": 1e-4, "weight": 1e-2}

    def search(self, problem: Problem) -> Mapping[str, Spec]:
        return {
            "learning_rate": Range(3e-5, 1e-3),
            "weight": Range(1e-4, 1.0),
        }

    @abstractmethod
    def estimate(self, denoiser: Denoiser, x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        """Return x_0 (b, c, h, w) whose residual counts, from x at sigma (b,) and its D(x; sigma)."""

    def loss(self, problem: Problem, denoiser: Denoiser, batch: Batch, weight: float, slope: float) -> torch.Tensor:
        """Return the loss above, mean over elements; at weight 0 the plain diffusion loss."""
        if weight < 0:
            raise ValueError(f"weight must not be negative, got {weight}")
        y, sigma, noise = batch
        s = sigma[:, None, None, None]
        x = y + s * noise
        denoised = denoiser(x, sigma)
        precision = (s**2 + denoiser.sigma_data**2) / (s * denoiser.sigma_data) ** 2
        loss: torch.Tensor = (precision * (denoised - y).square()).mean()
        if weight:
            residual = problem.residual(self.estimate(denoiser, x, denoised, sigma))
            loss = loss + weight * (precision.flatten() * residual / slope).mean()
        return loss

    def train(self, problem: Problem, settings: Settings, *, budget: float, seed: int) -> Weights:
        tuned = copy.deepcopy(problem.base).requires_grad_(True)
        weight, slope_here = settings["weight"], noise_slope(problem)
        return minimize(
            dict(tuned.network.named_parameters()),
            lambda batch, update: self.loss(problem, tuned, batch, weight, slope_here),
            SolverBatches(problem, seed=seed),
            updates=updates_for(budget, self.evaluations * (1 + GRADIENT_COST), self.name),
            learning_rate=settings["learning_rate"],
            what=self.name,
        )

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        policy = Policy(problem.base)
        policy.load_learned(weights)
        return PolicySampler(policy.to(problem.device))


@register
class Mean(PIDM):
    """The residual of the predicted mean."""

    name = "pidm-mean"
    title = "PIDM, mean"
    evaluations = 1

    def estimate(self, denoiser: Denoiser, x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        return denoised


@register
class Sample(PIDM):
    """The residual of a sampled estimate: Euler's step to s/2, then the prediction there, gradient through both."""

    name = "pidm-sample"
    title = "PIDM, sample"
    evaluations = 2

    def estimate(self, denoiser: Denoiser, x: torch.Tensor, denoised: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        s = sigma[:, None, None, None]
        half = x - 0.5 * s * ((x - denoised) / s)
        estimated: torch.Tensor = denoiser(half, 0.5 * sigma)
        return estimated
