"""Helmholtz equation (Huang et al. 2024, arXiv 2406.17763): lap psi + psi = f on [0, 1]^2, psi = 0 on the wall.

The source f is the Gaussian random field of envs.numerics.random_fields (alpha 2, tau 3), set to zero on the wall. Channels
(f, psi) on vertices, h = 1/(n-1), dimensionless. Model units: f / 2.15, psi / 0.028.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from envs.numerics.random_fields import neumann_field
from envs.pdes.base import register
from envs.pdes.elliptic import VertexElliptic, edge_mean_square


@register
class Helmholtz(VertexElliptic):
    """Helmholtz equation lap psi + psi = f on the n x n vertices of the unit square, psi = 0 on the wall.

    The channels are (f, psi), dimensionless. The residual maps of the operators have the units of f:

    ``consistent``  5-point lap psi + psi - f on interior vertices (b, 1, n-2, n-2). The wall is a condition of its own.
    ``compact``     Compact scheme of order 4, lap9 psi - (1 + h^2/12 lap5) (f - psi), (b, 1, n-4, n-4). The unrewarded check.
    ``paper``       5-point scheme with replicate padding on all vertices (b, 1, n, n), for comparison with the literature. Its
                    zero is the Neumann solution. Exact data have large residuals in its boundary rows.

    The conditions are:

    ``wall``         Mean square of psi on the wall, model units.
    ``weak``         Squared H^-1 norm of the consistent residual (envs.numerics.dual_norms).
    ``source_edge``  Mean square of f on the wall, model units.
    """

    env_id = "Helmholtz-v0"
    equation = "lap psi + psi = f, psi = 0 on the wall"
    channels = ("f", "psi")
    inputs = ("f",)
    units = "dimensionless; x and y in [0, 1]"
    solver = "5-point finite differences on vertices by fast sine transform (DST-I), float64"
    shift = 1.0
    source_scale = 1 / 2.15
    solution_scale = 1 / 0.028

    def source(self, seed: int, stream: str, sample_ids: Sequence[int]) -> np.ndarray:
        """Return the random source f (b, n, n), float64, zero on the wall."""
        f = neumann_field(seed, stream, sample_ids, self.resolution)
        return np.pad(f[:, 1:-1, 1:-1], ((0, 0), (1, 1), (1, 1)))

    @property
    def conditions(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The conditions ``wall``, ``weak`` and ``source_edge``."""
        return {**super().conditions, "source_edge": self.source_edge_violation}

    def source_edge_violation(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the mean square (b,) of f on the wall, model units. The f of exact data is zero on the wall."""
        return edge_mean_square(self.source_scale * fields[:, 0])
