"""PG-Diffusion (Shu et al. 2023, J. Comput. Phys. 478, 111972): the residual's gradient as a condition.

    D = D_base + scale (D_cond - D_base),  D_cond = D with  conv(SiLU(conv(c)))  added after the first convolution

(classifier-free guidance) with c the residual's gradient at c_skip x, each sample's scaled to root mean square 1: finite at
every sigma, and without a gradient through the network. The last convolution begins at zero and the base's own weights
stay: an untrained adapter, and a scale of 0, are the base model. Trained by the diffusion loss on solver data, the condition
left out (zero) one time in ten.
"""

import copy
from collections.abc import Mapping

import torch
import torch.nn as nn
import torch.nn.functional as F

from envs.common.search import Range, Spec
from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.losses.denoising import denoising_loss
from pirf_ray.diffusion.networks import Conv
from pirf_ray.diffusion.sampling import Sampler, finish
from pirf_ray.methods.base import Method, Problem, Settings, Weights, register
from pirf_ray.methods.solver_data import BATCH, Batch, SolverBatches, minimize, updates_for
from pirf_ray.metrics.cost import GRADIENT_COST
from pirf_ray.steering.residuals import residual_gradient

DROPPED = 0.1
"""Part of the training samples whose condition is left out."""


class Adapter(nn.Module):
    """Wraps the network's first convolution; ``condition`` (b, c, h, w) is set before each call of the network."""

    def __init__(self, conv: nn.Module, denoiser: Denoiser, seed: int) -> None:
        super().__init__()
        config = denoiser.config
        self.wrapped = conv
        self.first = Conv(config.channels, config.model_channels, 3, config.periodic)
        self.last = Conv(config.model_channels, config.model_channels, 3, config.periodic)
        own = torch.Generator().manual_seed(int(seeding.generator(seed, "adapter", 0).integers(2**63)))
        nn.init.xavier_uniform_(self.first.weight, generator=own)
        nn.init.zeros_(self.last.weight)
        self.condition: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.condition is None:
            raise ValueError("the adapter has no condition: call the conditioned denoiser, not its network")
        made: torch.Tensor = self.wrapped(x) + self.last(F.silu(self.first(self.condition)))
        return made


class ConditionedDenoiser(Denoiser):
    """The base model with an adapter; the base's weights are copies that do not learn.

    ``kept`` (b,): 1 or 0 for each sample whose condition is kept or left out; empty: all are kept.
    """

    def __init__(self, problem: Problem, *, seed: int = 0) -> None:
        base = problem.base
        with torch.random.fork_rng(devices=[]):  # layers are born with random weights, which are replaced at once
            super().__init__(base.config, base.sigma_data)
            self.network = copy.deepcopy(base.network).requires_grad_(False)
            self.name = f"{base.config.resolution}x{base.config.resolution}_conv"
            self.network.enc[self.name] = Adapter(self.network.enc[self.name], base, seed)
        self.problem = problem
        self.kept = torch.ones(0)
        self.to(problem.device).eval()

    @property
    def adapter(self) -> Adapter:
        """Return the adapter of the first convolution."""
        adapter = self.network.enc[self.name]
        assert isinstance(adapter, Adapter)
        return adapter

    def learning(self) -> dict[str, nn.Parameter]:
        """Return the adapter's own tensors, by name."""
        own = {f"first.{n}": p for n, p in self.adapter.first.named_parameters()}
        return own | {f"last.{n}": p for n, p in self.adapter.last.named_parameters()}

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        condition = residual_direction(self.problem, x, sigma)
        if len(self.kept):
            condition = condition * self.kept[:, None, None, None]
        self.adapter.condition = condition
        return super().forward(x, sigma)


def residual_direction(problem: Problem, x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
    """Return the residual's gradient at c_skip x (b, c, h, w), each sample's to root mean square 1; 0 where it is 0."""
    s = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
    variance = problem.base.sigma_data**2
    gradient, _ = residual_gradient(problem.residual, variance / (s**2 + variance) * x)
    size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
    return gradient / size.clamp_min(torch.finfo(x.dtype).tiny)


@register
class PGDiffusion(Method):
    """The adapter learns, the base model stays."""

    name = "pg-diffusion"
    title = "PG-Diffusion"
    source = "Shu et al. 2023, J. Comput. Phys. 478, 111972"
    trains = True

    def defaults(self, problem: Problem) -> Settings:
        return {"learning_rate": 1e-3, "scale": 1.0}

    def search(self, problem: Problem) -> Mapping[str, Spec]:
        return {
            "learning_rate": Range(1e-4, 1e-2),
            "scale": Range(0.5, 3.0, log=False),
        }

    def train(self, problem: Problem, settings: Settings, *, budget: float, seed: int) -> Weights:
        denoiser = ConditionedDenoiser(problem, seed=seed)
        denoiser.adapter.first.requires_grad_(True)
        denoiser.adapter.last.requires_grad_(True)

        def loss(batch: Batch, update: int) -> torch.Tensor:
            drawn = seeding.generator(seed, "dropped conditions", update).random(BATCH)
            denoiser.kept = torch.from_numpy(drawn >= DROPPED).to(batch[0])
            return denoising_loss(denoiser, *batch)

        return minimize(
            denoiser.learning(),
            loss,
            SolverBatches(problem, seed=seed),
            updates=updates_for(budget, 1 + GRADIENT_COST, self.name),
            learning_rate=settings["learning_rate"],
            what=self.name,
        )

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        denoiser = ConditionedDenoiser(problem)
        own = denoiser.learning()
        with torch.no_grad():
            for name, tensor in weights.items():
                own[name].copy_(tensor)
        return ConditionedSampler(problem, denoiser, settings["scale"])


class ConditionedSampler:
    """The process's steps with D above; the base is evaluated alone at scale 0, the conditioned one alone at scale 1."""

    def __init__(self, problem: Problem, denoiser: ConditionedDenoiser, scale: float) -> None:
        self.problem, self.denoiser, self.scale = problem, denoiser, scale

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        return finish(process, lambda sigma: self.denoise, process.initial(noise))

    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        """Return D(x; sigma) (b, c, h, w) at the scale."""
        if self.scale == 1:
            return self._conditioned(x, sigma)
        if self.scale == 0:
            return self._base(x, sigma)
        conditioned, base = self._conditioned(x, sigma), self._base(x, sigma)
        return base + self.scale * (conditioned - base)

    def _base(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        denoised: torch.Tensor = self.problem.base(x, sigma)
        return denoised

    def _conditioned(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        denoised: torch.Tensor = self.denoiser(x, sigma)
        return denoised
