"""Poisson equation (Huang et al. 2024, arXiv 2406.17763): lap phi = f on [0, 1]^2, phi = 0 on the wall.

The source f is the Gaussian random field of envs.numerics.random_fields (alpha 2, tau 3), kept on the wall. Channels
(f, phi) on vertices, h = 1/(n-1), dimensionless. Model units: f / 2.15, 36.5 phi.
"""

from collections.abc import Sequence

import numpy as np

from envs.numerics.random_fields import neumann_field
from envs.pdes.base import register
from envs.pdes.elliptic import VertexElliptic


@register
class Poisson(VertexElliptic):
    """Poisson equation lap phi = f on the n x n vertices of the unit square, phi = 0 on the wall.

    The channels are (f, phi), dimensionless. The residual maps of the operators have the units of f:

    ``consistent``  5-point lap phi - f on interior vertices (b, 1, n-2, n-2). The wall is a condition of its own.
    ``compact``     Compact scheme of order 4, lap9 phi - (1 + h^2/12 lap5) f, (b, 1, n-4, n-4). The unrewarded check.
    ``paper``       5-point scheme with replicate padding on all vertices (b, 1, n, n), for comparison with the literature. Its
                    zero is the Neumann solution. Exact data have large residuals in its boundary rows.

    The conditions are:

    ``wall``        Mean square of phi on the wall, model units.
    ``weak``        Squared H^-1 norm of the consistent residual (envs.numerics.dual_norms).
    """

    env_id = "Poisson-v0"
    equation = "lap phi = f, phi = 0 on the wall"
    channels = ("f", "phi")
    inputs = ("f",)
    units = "dimensionless; x and y in [0, 1]"
    solver = "5-point finite differences on vertices by fast sine transform (DST-I), float64"
    shift = 0.0
    source_scale = 1 / 2.15
    solution_scale = 36.5

    def source(self, seed: int, stream: str, sample_ids: Sequence[int]) -> np.ndarray:
        """Return the random source f (b, n, n), float64."""
        return neumann_field(seed, stream, sample_ids, self.resolution)
