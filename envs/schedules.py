"""Sigma schedules of the EDM sampler (Karras et al. 2022, arXiv 2206.00364, equation 5)."""

import torch

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
RHO = 7.0


def karras_schedule(
    num_steps: int, *, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO
) -> torch.Tensor:
    """Return the sigmas (N+1,), float64, of N steps: from sigma_max to sigma_min, then 0.

    sigma_i = (sigma_max^(1/rho) + i/(N-1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho for i < N. ValueError if N < 1 or if the
    sigmas are not 0 < sigma_min <= sigma_max.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    if not 0 < sigma_min <= sigma_max:
        raise ValueError(f"need 0 < sigma_min <= sigma_max, got {sigma_min} and {sigma_max}")
    fraction = torch.arange(num_steps, dtype=torch.float64) / max(num_steps - 1, 1)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigmas = (high + fraction * (low - high)) ** rho
    return torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
