"""Helmholtz equation (Huang et al. 2024, arXiv 2406.17763): lap psi + psi = f on [0, 1]^2, psi = 0 on the wall.

f is the Gaussian random field of envs.numerics.random_fields (alpha 2, tau 3), set to zero on the wall. Channels (f, psi),
vertices, dimensionless. Model units: f / 2.15, psi / 0.028.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from envs.numerics.random_fields import neumann_field
from envs.pdes.base import register
from envs.pdes.elliptic import VertexElliptic, edge_mean_square


@register
class Helmholtz(VertexElliptic):
    __doc__ = VertexElliptic.__doc__

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
        f = neumann_field(seed, stream, sample_ids, self.resolution)
        return np.pad(f[:, 1:-1, 1:-1], ((0, 0), (1, 1), (1, 1)))

    @property
    def conditions(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        return {**super().conditions, "source_edge": self.source_edge_violation}

    def source_edge_violation(self, fields: torch.Tensor) -> torch.Tensor:
        """Mean square of f on the wall, model units: the data's f is zero there."""
        return edge_mean_square(self.source_scale * fields[:, 0])
