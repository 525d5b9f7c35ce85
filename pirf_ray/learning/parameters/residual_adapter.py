"""An adapter of the network that reads the residual's gradient (PG-Diffusion: Shu et al. 2023, J. Comput. Phys. 478, 111972).

    D_cond = D with  conv(SiLU(conv(g)))  added after the first convolution,
    g = grad r(c_skip x) over its root mean square,  r the mean square residual, c_skip = sd^2 / (s^2 + sd^2)

The direction g is finite at every sigma. It is taken without a graph, so no gradient passes through it to x. The base's weights
do not change. The last convolution starts at zero, so D_cond starts as D. For classifier-free guidance (Ho & Salimans 2022,
arXiv 2207.12598) the objective ``denoising`` leaves g out of some samples, and the sampler ``classifier-free`` extrapolates.
"""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F

from envs.common.checks import ConfigError
from envs.common.parts import PartSettings
from envs.numerics import seeding
from envs.numerics.conditions import Condition
from envs.pdes import PDE
from envs.pdes.base import require
from pirf_ray.diffusion.denoiser import AbstractDenoiser, Denoiser
from pirf_ray.diffusion.networks import Conv
from pirf_ray.learning.parameters.base import Group, register
from pirf_ray.metrics.cost import count_residual_gradients
from pirf_ray.steering.residuals import residual_gradient, wide

KEPT = "kept"
"""Name in a condition: 1 or 0 (b,) for each sample whose own conditioning is kept or left out. Without it all are kept."""


def give_pde(denoiser: AbstractDenoiser, pde: PDE) -> None:
    """Tell a denoiser the PDE of its fields, for parts that read a residual."""
    vars(denoiser)["pde"] = pde


class Adapter(nn.Module):
    """The network's first convolution with the adapter beside it. ``direction`` (b, c, h, w) is set before each evaluation."""

    def __init__(self, wrapped: nn.Module, denoiser: Denoiser) -> None:
        super().__init__()
        config = denoiser.config
        self.wrapped = wrapped
        with torch.random.fork_rng(devices=[]):  # layers are born with random weights, which are replaced at once
            self.first = Conv(config.channels, config.model_channels, 3, config.periodic)
            self.last = Conv(config.model_channels, config.model_channels, 3, config.periodic)
        bound = math.sqrt(6 / (9 * (config.channels + config.model_channels)))  # Xavier-uniform, kernels of 3 x 3
        drawn = seeding.generator(0, "residual adapter", 0).uniform(-bound, bound, tuple(self.first.weight.shape))
        with torch.no_grad():
            self.first.weight.copy_(torch.from_numpy(drawn))
            self.last.weight.zero_()
        self.direction: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features (b, m, h, w) of x (b, c, h, w). ValueError without a direction."""
        if self.direction is None:
            raise ValueError("the adapter has no direction: call the conditioned denoiser, not its network")
        made: torch.Tensor = self.wrapped(x) + self.last(F.silu(self.first(self.direction)))
        return made


class ConditionedDenoiser(AbstractDenoiser):
    """Frozen denoiser with an adapter that reads the direction of the residual's gradient. Only the adapter learns."""

    def __init__(self, inner: Denoiser, pde: PDE) -> None:
        """Put the adapter into the denoiser's network. NotProvided if the PDE has no residual operator."""
        super().__init__()
        require(pde, "operators", "--parameters residual-adapter")
        self.inner, self.pde, self.sigma_data = inner.eval().requires_grad_(False), pde, inner.sigma_data
        place = f"{inner.config.resolution}x{inner.config.resolution}_conv"
        like = next(inner.parameters())
        self.adapter = Adapter(inner.network.enc[place], inner).to(like)
        inner.network.enc[place] = self.adapter

    def tensors(self) -> dict[str, nn.Parameter]:
        """Return the adapter's tensors by name."""
        layers = {"first": self.adapter.first, "last": self.adapter.last}
        return {f"adapter.{layer}.{name}": p for layer, module in layers.items() for name, p in module.named_parameters()}

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None) -> torch.Tensor:
        """Return the denoised fields (b, c, h, w). ``condition[KEPT]`` (b,), if it is given, says whose direction is kept."""
        direction = self.direction(x, sigma)
        if condition is not None and KEPT in condition:
            direction = direction * wide(condition[KEPT].to(direction))
        self.adapter.direction = direction
        denoised: torch.Tensor = self.inner(x, sigma, condition)
        return denoised

    def direction(self, x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        """Return g (b, c, h, w): each sample's gradient with the root mean square 1, or 0 where the gradient is 0."""
        s = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1)
        variance = self.sigma_data**2
        gradient, _ = residual_gradient(self._residual, variance / (s**2 + variance) * x)
        size = gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
        return gradient / size.clamp_min(torch.finfo(x.dtype).tiny)

    def _residual(self, x: torch.Tensor) -> torch.Tensor:
        if self.pde is None:
            raise ValueError("the residual adapter needs a denoiser that knows its PDE")
        residual = self.pde.residual(self.pde.normalizer.to_physical(x), self.pde.default_operator)
        count_residual_gradients(residual)
        return residual


@register("residual-adapter")
class ResidualAdapter:
    """Adapter of the frozen network that reads the residual's gradient (PG-Diffusion)."""

    def __init__(self, settings: PartSettings) -> None:
        """Ignore the settings: there are none."""

    def attach(self, denoiser: AbstractDenoiser) -> tuple[AbstractDenoiser, list[Group]]:
        """Return the denoiser with an adapter, and the group of the adapter's tensors.

        ConfigError unless the denoiser is a network whose PDE is known and has a residual.
        """
        pde: PDE | None = getattr(denoiser, "pde", None)
        if not isinstance(denoiser, Denoiser):
            raise ConfigError(
                f"--parameters residual-adapter wraps the first convolution of a network, got {type(denoiser).__name__}"
            )
        if pde is None:
            raise ConfigError("--parameters residual-adapter needs the PDE of the denoiser, which is not known")
        conditioned = ConditionedDenoiser(denoiser, pde)
        parameters = conditioned.tensors()
        for parameter in parameters.values():
            parameter.requires_grad_(True)
        return conditioned, [Group(parameters=parameters)]
