"""What Poisson and Helmholtz share: (lap + shift) v = f on the unit square, v = 0 on the wall, on vertices.

Channels (f, v), both (b, n, n) with rows x and columns y at x_i = i h, h = 1/(n-1), walls stored. The solver is the
5-point scheme, diagonal under the type-I sine transform of the (n-2)^2 interior vertices.
"""

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import scipy.fft
import torch
import torch.nn.functional as F

from envs.numerics.dual_norms import dual_square
from envs.numerics.grids import Axis, Grid
from envs.numerics.normalization import Normalizer
from envs.numerics.operators import five_point_laplacian, nine_point_laplacian
from envs.numerics.symmetries import random_square_symmetry
from envs.pdes.base import PDE, relative_error


def sine_solve(source: np.ndarray, shift: float) -> np.ndarray:
    """v (b, n, n) with 5-point lap v + shift v = source on interior vertices and v = 0 on the wall. float64.

    Eigenvalues of the 5-point Laplacian: (2 cos(pi j h) - 2 + 2 cos(pi k h) - 2) / h^2, j, k = 1..n-2.
    """
    n = source.shape[-1]
    spacing = 1 / (n - 1)
    one = (2 * np.cos(np.pi * np.arange(1, n - 1) * spacing) - 2) / spacing**2
    modes = scipy.fft.dstn(source[:, 1:-1, 1:-1], type=1, axes=(-2, -1), norm="ortho")
    interior = scipy.fft.dstn(modes / (one[:, None] + one + shift), type=1, axes=(-2, -1), norm="ortho")
    return np.pad(interior, ((0, 0), (1, 1), (1, 1)))


class VertexElliptic(PDE):
    """(lap + shift) v = f with v = 0 on the wall, channels (f, v).

    Operators (residual maps in units of f):
    ``consistent``  5-point lap v + shift v - f on interior vertices (b, 1, n-2, n-2); the wall is a condition of its own.
    ``compact``     fourth-order compact scheme, lap9 v - (1 + h^2/12 lap5) (f - shift v), (b, 1, n-4, n-4): no reward uses it.
    ``paper``       5-point with replicate padding on all vertices (b, 1, n, n): its zero is the Neumann solution, and exact
                    data score badly in the boundary rows. Kept for comparison with the literature.

    Conditions: ``wall``, the mean square of v on the wall in model units, and ``weak``, the squared H^-1 norm of the
    consistent residual (envs.numerics.dual_norms).
    """

    shift: ClassVar[float]
    source_scale: ClassVar[float]
    solution_scale: ClassVar[float]
    default_operator = "consistent"
    unrewarded_operator = "compact"
    default_resolution = 128
    condition_weights = {"wall": 3.0, "weak": 1.5, "source_edge": 3.0}  # noqa: RUF012

    @abstractmethod
    def source(self, seed: int, stream: str, sample_ids: Sequence[int]) -> np.ndarray:
        """f (b, n, n), float64."""

    @property
    def grid(self) -> Grid:
        n = self.resolution
        rows, columns = (Axis(name=name, extent=1.0, size=n, layout="vertex") for name in "xy")
        return Grid(rows=rows, columns=columns)

    @property
    def normalizer(self) -> Normalizer:
        return Normalizer(scale=(self.source_scale, self.solution_scale), shift=(0.0, 0.0))

    def solve(self, seed: int, stream: str, sample_ids: Sequence[int]) -> torch.Tensor:
        f = self.source(seed, stream, sample_ids)
        return torch.from_numpy(np.stack([f, sine_solve(f, self.shift)], axis=1))

    @property
    def operators(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        return {"consistent": self._consistent, "compact": self._compact, "paper": self._paper}

    @property
    def conditions(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        return {"wall": self.wall_violation, "weak": self.weak_violation}

    def _consistent(self, fields: torch.Tensor) -> torch.Tensor:
        f, v = fields[:, :1], fields[:, 1:]
        interior = (slice(None), slice(None), slice(1, -1), slice(1, -1))
        return five_point_laplacian(v, self.grid.spacing) + self.shift * v[interior] - f[interior]

    def _compact(self, fields: torch.Tensor) -> torch.Tensor:
        f, v = fields[:, :1], fields[:, 1:]
        spacing = self.grid.spacing
        right = f - self.shift * v
        right = right[..., 1:-1, 1:-1] + spacing[0] ** 2 / 12 * five_point_laplacian(right, spacing)
        return (nine_point_laplacian(v, spacing) - right)[..., 1:-1, 1:-1]

    def _paper(self, fields: torch.Tensor) -> torch.Tensor:
        f, v = fields[:, :1], fields[:, 1:]
        return five_point_laplacian(F.pad(v, (1, 1, 1, 1), mode="replicate"), self.grid.spacing) + self.shift * v - f

    def wall_violation(self, fields: torch.Tensor) -> torch.Tensor:
        return edge_mean_square(self.solution_scale * fields[:, 1])

    def weak_violation(self, fields: torch.Tensor) -> torch.Tensor:
        """The mean square slope of (v - the solution of the sample's own source), where the walls are kept."""
        return dual_square(self._consistent(fields), self.grid.spacing[0], "vertex", self.shift)

    def resolve(self, fields: torch.Tensor) -> torch.Tensor:
        """The 5-point solution of each sample's own source. float64."""
        self.check_fields(fields)
        f = fields[:, 0].detach().double().cpu().numpy()
        return torch.from_numpy(np.stack([f, sine_solve(f, self.shift)], axis=1)).to(fields.device)

    def resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        return relative_error(fields[:, 1].double(), self.resolve(fields)[:, 1])

    def trivial_resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """The zero solution: 1."""
        truth = self.resolve(fields)[:, 1]
        return relative_error(torch.zeros_like(truth), truth)

    def marginal(self, fields: torch.Tensor) -> torch.Tensor:
        return fields[:, 0]

    def augment(self, fields: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """The eight symmetries of the square, and the sign: the equation is linear, and its source's law even."""
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=len(fields))).to(fields)
        return random_square_symmetry(fields, rng) * signs[:, None, None, None]


def edge_mean_square(u: torch.Tensor) -> torch.Tensor:
    """Mean square (b,) of u (b, n, n) over the 4(n-1) vertices of the wall."""
    edge = torch.cat([u[:, 0], u[:, -1], u[:, 1:-1, 0], u[:, 1:-1, -1]], dim=1)
    return edge.square().mean(1)
