"""EDM preconditioning (Karras et al. 2022, arXiv 2206.00364, table 1): the denoiser around the network."""

from abc import abstractmethod
from typing import Any

import torch
import torch.nn as nn

from envs.numerics.conditions import Condition
from envs.pdes import PDE
from pirf_ray.diffusion.networks import NetworkConfig, UNet


class AbstractDenoiser(nn.Module):
    """Denoiser D(x; sigma) of any kind: a network, an analytic law, or either with parts attached to it.

    Its calls are the network evaluations that the meter counts (pirf_ray.metrics.cost).
    """

    sigma_data: float
    """Standard deviation of the training data, model units."""
    pde: PDE | None = None
    """PDE of the fields, for parts that read its residual. None: not known."""

    @abstractmethod
    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None) -> torch.Tensor:
        """Return the denoised fields (b, c, h, w) of states x (b, c, h, w). ``sigma``: (b,) or a number."""

    draws_first_noise = False
    """Whether ``first_noise`` changes the noise."""

    def first_noise(self, noise: torch.Tensor, condition: Condition | None = None) -> torch.Tensor:
        """Return the first noise of samples from standard normal noise (b, c, h, w): by default the noise itself."""
        return noise

    def tensors(self) -> dict[str, nn.Parameter]:
        """Return the parameters by the names under which they are published and saved."""
        return dict(self.named_parameters())

    def identity(self) -> dict[str, torch.Tensor]:
        """Return the tensors that tell this denoiser from another: parameters and buffers."""
        return dict(self.state_dict())


class Denoiser(AbstractDenoiser):
    """Denoiser D(x; sigma) = c_skip x + c_out F(c_in x; c_noise), in model units.

    c_skip = sd^2/(s^2+sd^2), c_out = s sd/sqrt(s^2+sd^2), c_in = 1/sqrt(s^2+sd^2), c_noise = ln(s)/4.
    s is sigma, sd = sigma_data is the standard deviation of the training data, F is the network.
    Shapes: x (b, c, n, n), sigma (b,) or a number.
    """

    def __init__(self, config: NetworkConfig, sigma_data: float) -> None:
        super().__init__()
        if not sigma_data > 0:
            raise ValueError(f"sigma_data must be positive, got {sigma_data}")
        self.config = config
        self.sigma_data = float(sigma_data)
        self.network = UNet(config)
        self.truncate_levels: int | None = None
        """Number of top decoder levels whose inputs cut the gradient (layer-wise truncation). None cuts nothing."""

    def tensors(self) -> dict[str, nn.Parameter]:
        """Return the network's parameters by EDM's names."""
        return dict(self.network.named_parameters())

    def identity(self) -> dict[str, torch.Tensor]:
        """Return the network's tensors by EDM's names."""
        return dict(self.network.state_dict())

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None) -> torch.Tensor:
        """Return the denoised fields (b, c, n, n). The network reads no condition.

        ValueError if x has another shape than the network's.
        """
        if tuple(x.shape[1:]) != (self.config.channels, self.config.resolution, self.config.resolution):
            raise ValueError(
                f"expected x (b, {self.config.channels}, {self.config.resolution}, {self.config.resolution}), got {tuple(x.shape)}"
            )
        s = torch.as_tensor(sigma, dtype=x.dtype, device=x.device).reshape(-1, 1, 1, 1).expand(len(x), 1, 1, 1)
        variance = s**2 + self.sigma_data**2
        c_skip, c_out = self.sigma_data**2 / variance, s * self.sigma_data / variance.sqrt()
        return c_skip * x + c_out * self._network(x / variance.sqrt(), s.flatten().log() / 4)

    def _network(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        if self.truncate_levels is None or not torch.is_grad_enabled():
            whole: torch.Tensor = self.network(x, c_noise)
            return whole
        with torch.no_grad():
            trunk = self.network.trunk(x, c_noise, self.truncate_levels)
        return self.network.head(*trunk, self.truncate_levels)

    def load_network(self, tensors: dict[str, torch.Tensor]) -> "Denoiser":
        """Load every tensor of the network, by EDM's parameter names. ValueError names tensors that are missing or do not fit."""
        own = self.network.state_dict()
        missing, unknown = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        wrong = [
            f"{k} {tuple(tensors[k].shape)} instead of {tuple(own[k].shape)}"
            for k in own.keys() & tensors.keys()
            if tensors[k].shape != own[k].shape
        ]
        problems: list[tuple[str, Any]] = [("missing", missing), ("unknown", unknown), ("wrong shape", wrong)]
        text = "; ".join(
            f"{label}: {', '.join(names[:3])}{' ...' if len(names) > 3 else ''}" for label, names in problems if names
        )
        if text:
            raise ValueError(f"the tensors do not fit the network: {text}")
        self.network.load_state_dict(tensors)
        return self
