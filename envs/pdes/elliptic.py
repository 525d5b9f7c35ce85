"""The base class of Poisson and Helmholtz: (lap + shift) v = f on the unit square, v = 0 on the wall, on vertices.

Channels (f, v), both (b, n, n). Rows are x and columns are y, x_i = i h with h = 1/(n-1), and the walls are stored. The solver
is the 5-point scheme, which is diagonal under the type-I sine transform of the (n-2)^2 interior vertices.
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
    """Return v (b, n, n), float64, with 5-point lap v + shift v = source on interior vertices and v = 0 on the wall.

    The 5-point Laplacian has the eigenvalues (2 cos(pi j h) - 2 + 2 cos(pi k h) - 2) / h^2, j, k = 1..n-2.
    """
    n = source.shape[-1]
    spacing = 1 / (n - 1)
    one = (2 * np.cos(np.pi * np.arange(1, n - 1) * spacing) - 2) / spacing**2
    modes = scipy.fft.dstn(source[:, 1:-1, 1:-1], type=1, axes=(-2, -1), norm="ortho")
    interior = scipy.fft.dstn(modes / (one[:, None] + one + shift), type=1, axes=(-2, -1), norm="ortho")
    return np.pad(interior, ((0, 0), (1, 1), (1, 1)))


class VertexElliptic(PDE):
    """The elliptic equation (lap + shift) v = f on the n x n vertices of the unit square, v = 0 on the wall.

    The channels are (f, v). The residual maps of the operators have the units of f:

    ``consistent``  5-point lap v + shift v - f on interior vertices (b, 1, n-2, n-2). The wall is a condition of its own.
    ``compact``     Compact scheme of order 4, lap9 v - (1 + h^2/12 lap5) (f - shift v), (b, 1, n-4, n-4). The unrewarded check.
    ``paper``       5-point scheme with replicate padding on all vertices (b, 1, n, n), for comparison with the literature. Its
                    zero is the Neumann solution. Exact data have large residuals in its boundary rows.

    The conditions are:

    ``wall``        Mean square of v on the wall, model units.
    ``weak``        Squared H^-1 norm of the consistent residual (envs.numerics.dual_norms).
    """

    shift: ClassVar[float]
    """Coefficient of v in the equation."""
    source_scale: ClassVar[float]
    """Model units of f per physical unit."""
    solution_scale: ClassVar[float]
    """Model units of v per physical unit."""
    default_operator = "consistent"
    unrewarded_operator = "compact"
    default_resolution = 128
    condition_weights: ClassVar[dict[str, float]] = {"wall": 3.0, "weak": 1.5, "source_edge": 3.0}

    @abstractmethod
    def source(self, seed: int, stream: str, sample_ids: Sequence[int]) -> np.ndarray:
        """Return the source f (b, n, n), float64."""

    @property
    def grid(self) -> Grid:
        """The vertices of the unit square, walls included."""
        n = self.resolution
        rows, columns = (Axis(name=name, extent=1.0, size=n, layout="vertex") for name in "xy")
        return Grid(rows=rows, columns=columns)

    @property
    def normalizer(self) -> Normalizer:
        """The scales of f and v, without a shift."""
        return Normalizer(scale=(self.source_scale, self.solution_scale), shift=(0.0, 0.0))

    def solve(self, seed: int, stream: str, sample_ids: Sequence[int]) -> torch.Tensor:
        """Return random sources with their 5-point solutions (b, 2, n, n), float64."""
        f = self.source(seed, stream, sample_ids)
        return torch.from_numpy(np.stack([f, sine_solve(f, self.shift)], axis=1))

    @property
    def operators(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The operators ``consistent``, ``compact`` and ``paper``."""
        return {"consistent": self._consistent, "compact": self._compact, "paper": self._paper}

    @property
    def conditions(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The conditions ``wall`` and ``weak``."""
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
        """Return the mean square (b,) of v on the wall, model units."""
        return edge_mean_square(self.solution_scale * fields[:, 1])

    def weak_violation(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the squared H^-1 norm (b,) of the consistent residual.

        If v is 0 on the wall, this is the mean square slope of e = v - (re-solved v), less shift times the mean square of e.
        """
        return dual_square(self._consistent(fields), self.grid.spacing[0], "vertex", self.shift)

    def resolve(self, fields: torch.Tensor) -> torch.Tensor:
        """Return each sample's source with its 5-point solution (b, 2, n, n), float64."""
        self.check_fields(fields)
        f = fields[:, 0].detach().double().cpu().numpy()
        return torch.from_numpy(np.stack([f, sine_solve(f, self.shift)], axis=1)).to(fields.device)

    def resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the relative L2 error (b,) of v against the re-solved v."""
        return relative_error(fields[:, 1].double(), self.resolve(fields)[:, 1])

    def trivial_resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the error (b,) of the zero solution, which is 1."""
        truth = self.resolve(fields)[:, 1]
        return relative_error(torch.zeros_like(truth), truth)

    def marginal(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the source f (b, n, n)."""
        return fields[:, 0]

    def augment(self, fields: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Return the fields, each moved by a random symmetry of the square and with a random sign.

        The sign is a symmetry because the equation is linear and the law of its source is even.
        """
        signs = torch.from_numpy(rng.choice([-1.0, 1.0], size=len(fields))).to(fields)
        return random_square_symmetry(fields, rng) * signs[:, None, None, None]


def edge_mean_square(u: torch.Tensor) -> torch.Tensor:
    """Return the mean square (b,) of u (b, n, n) over the 4(n-1) vertices of the wall."""
    edge = torch.cat([u[:, 0], u[:, -1], u[:, 1:-1, 0], u[:, 1:-1, -1]], dim=1)
    return edge.square().mean(1)
