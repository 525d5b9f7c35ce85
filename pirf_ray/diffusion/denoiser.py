"""EDM preconditioning (Karras et al. 2022, arXiv 2206.00364, table 1): the denoiser around the network."""

from typing import Any

import torch
import torch.nn as nn

from pirf_ray.diffusion.networks import NetworkConfig, UNet


class Denoiser(nn.Module):
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

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        """Return the denoised fields (b, c, n, n). ValueError if x has another shape than the network's."""
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
