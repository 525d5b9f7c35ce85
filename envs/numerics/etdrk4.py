"""Exponential time differencing of order 4 (ETDRK4) for v_t = L v + N(v) with a stiff, diagonal L.

Cox & Matthews 2002 with the contour integrals of Kassam & Trefethen 2005 (SIAM J. Sci. Comput. 26, 1214).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

CONTOUR_POINTS = 64


@dataclass(frozen=True, kw_only=True)
class ETDRK4:
    """Coefficients of a step of size dt of v_t = L v + N(v), L real and diagonal. The order is 4 in dt."""

    decay: torch.Tensor
    decay_half: torch.Tensor
    q: torch.Tensor
    f1: torch.Tensor
    f2: torch.Tensor
    f3: torch.Tensor

    @classmethod
    def create(cls, linear: np.ndarray, dt: float, *, dtype: torch.dtype, device: torch.device | str) -> "ETDRK4":
        """Return the coefficients for the diagonal ``linear`` (modes,) of L, computed in float64 and cast to ``dtype``."""
        z = dt * np.asarray(linear, dtype=np.float64)
        # The phi functions cancel catastrophically near z = 0; their mean over a circle around z does not.
        roots = np.exp(2j * np.pi * (np.arange(CONTOUR_POINTS) + 0.5) / CONTOUR_POINTS)
        r = z[:, None] + roots[None, :]
        q = dt * ((np.exp(r / 2) - 1) / r).mean(1).real
        f1 = dt * ((-4 - r + np.exp(r) * (4 - 3 * r + r**2)) / r**3).mean(1).real
        f2 = dt * ((2 + r + np.exp(r) * (r - 2)) / r**3).mean(1).real
        f3 = dt * ((-4 - 3 * r - r**2 + np.exp(r) * (4 - r)) / r**3).mean(1).real

        def cast(values: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(values, dtype=dtype, device=device)

        return cls(decay=cast(np.exp(z)), decay_half=cast(np.exp(z / 2)), q=cast(q), f1=cast(f1), f2=cast(f2), f3=cast(f3))

    def step(self, v: torch.Tensor, nonlinear: Callable[[torch.Tensor], torch.Tensor]) -> torch.Tensor:
        """Return v (..., modes) advanced by dt, with ``nonlinear`` the map N."""
        n_v = nonlinear(v)
        half = self.decay_half * v
        a = half + self.q * n_v
        n_a = nonlinear(a)
        b = half + self.q * n_a
        n_b = nonlinear(b)
        c = self.decay_half * a + self.q * (2 * n_b - n_v)
        n_c = nonlinear(c)
        return self.decay * v + self.f1 * n_v + 2 * self.f2 * (n_a + n_b) + self.f3 * n_c
