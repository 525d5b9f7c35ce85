"""Poisson equation (Huang et al. 2024, arXiv 2406.17763): lap phi = f on [0, 1]^2, phi = 0 on the wall.

f is the Gaussian random field of envs.numerics.random_fields (alpha 2, tau 3), kept on the wall. Channels (f, phi), vertices,
dimensionless. Model units: f / 2.15, 36.5 phi.
"""

from collections.abc import Sequence

import numpy as np

from envs.numerics.random_fields import neumann_field
from envs.pdes.base import register
from envs.pdes.elliptic import VertexElliptic


@register
class Poisson(VertexElliptic):
    __doc__ = VertexElliptic.__doc__

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
        return neumann_field(seed, stream, sample_ids, self.resolution)
