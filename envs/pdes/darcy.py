"""Darcy flow (Huang et al. 2024, arXiv 2406.17763): -div(a grad u) = 1 on [0, 1]^2, u = 0 on the wall.

a = 12 where the Gaussian random field of envs.numerics.random_fields (alpha 2, tau 3) is >= 0, else 3. Channels (a, u), cell
centres, h = 1/n, dimensionless. Model units: 0.2 a - 1.5, 115 u - 0.9.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from envs.numerics.dual_norms import dual_square
from envs.numerics.grids import Axis, Grid
from envs.numerics.normalization import Normalizer
from envs.numerics.operators import central_difference_replicate
from envs.numerics.random_fields import neumann_field
from envs.numerics.symmetries import random_square_symmetry
from envs.pdes import darcy_solver
from envs.pdes.base import PDE, register, relative_error

LOW, HIGH = 3.0, 12.0
SOURCE = 1.0
RAMP = (4.5, 10.5)
"""Generated coefficients outside of it count as exactly LOW or HIGH; within it they blend, and gradient reaches them."""


def soft_threshold(a: torch.Tensor) -> torch.Tensor:
    """LOW up to RAMP's start, HIGH from its end, 3 t^2 - 2 t^3 between: continuously differentiable, exact on exact data."""
    t = ((a - RAMP[0]) / (RAMP[1] - RAMP[0])).clamp(0, 1)
    return LOW + (HIGH - LOW) * t.square() * (3 - 2 * t)


@register
class Darcy(PDE):
    """Darcy flow on n x n cells. See the module docstring for the equation and the grid.

    Every operator takes the coefficient through ``soft_threshold``. Residual maps in units of the source:
    ``consistent``  finite volumes, the solver's own: sum of the fluxes out of each cell / h^2 - 1, harmonic face
                    coefficients, half-cell walls (b, 1, n, n).
    ``galerkin``    bilinear elements whose corners are cell centres, the coefficient a constant in each quarter
                    (b, 1, n-2, n-2); another discretization, of first order at jumps: no reward uses it.
    ``paper``       the reference's non-conservative a lap u + grad a . grad u + 1 with composed central differences,
                    replicate padding (b, 1, n, n): u = 0 scores better than exact data. Kept for comparison.

    Conditions: ``two_valued``, the mean squared distance of a to the nearer of 3 and 12 (model units);
    ``conservation``, the square of (flux out of the walls - source of the whole square); ``weak``, the squared H^-1 norm
    of the consistent residual (envs.numerics.dual_norms), its natural norm also where a jumps.
    """

    env_id = "Darcy-v0"
    equation = "-div(a grad u) = 1, u = 0 on the wall, a in {3, 12}"
    channels = ("a", "u")
    inputs = ("a",)
    units = "dimensionless; x and y in [0, 1]"
    solver = "cell-centred finite volumes, harmonic faces, preconditioned conjugate gradients to 1e-11, float64"
    default_operator = "consistent"
    unrewarded_operator = "galerkin"
    default_resolution = 128
    condition_weights = {"two_valued": 0.5, "conservation": 0.2, "weak": 1.5}  # noqa: RUF012

    @property
    def grid(self) -> Grid:
        rows, columns = (Axis(name=name, extent=1.0, size=self.resolution, layout="cell") for name in "xy")
        return Grid(rows=rows, columns=columns)

    @property
    def normalizer(self) -> Normalizer:
        return Normalizer(scale=(0.2, 115.0), shift=(-1.5, -0.9))

    def solve(self, seed: int, stream: str, sample_ids: Sequence[int]) -> torch.Tensor:
        a = np.where(neumann_field(seed, stream, sample_ids, self.resolution) >= 0, HIGH, LOW)
        return torch.from_numpy(np.stack([a, darcy_solver.solve(a, SOURCE)], axis=1))

    @property
    def operators(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        return {"consistent": self._consistent, "galerkin": self._galerkin, "paper": self._paper}

    @property
    def conditions(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        return {
            "two_valued": self.two_valuedness_violation,
            "conservation": self.conservation_violation,
            "weak": self.weak_violation,
        }

    def _consistent(self, fields: torch.Tensor) -> torch.Tensor:
        a, u = soft_threshold(fields[:, :1]), fields[:, 1:]
        balance = _outflow(a, u) + _outflow(a.mT, u.mT).mT
        return balance / self.grid.spacing[0] ** 2 - SOURCE

    def _galerkin(self, fields: torch.Tensor) -> torch.Tensor:
        a, u = soft_threshold(fields[:, :1]), fields[:, 1:]
        out = torch.zeros_like(u)
        # Energy of one element with corners u_ij: sum over its four quarters of a_ij |grad u(center of the quarter)|^2 h^2/4 / 2.
        for i in (0, 1):
            for j in (0, 1):
                out = out + _element_gradient(a, u, i, j) + _element_gradient(a.mT, u.mT, j, i).mT
        return out[..., 1:-1, 1:-1] / self.grid.spacing[0] ** 2 - SOURCE

    def _paper(self, fields: torch.Tensor) -> torch.Tensor:
        a, u = soft_threshold(fields[:, :1]), fields[:, 1:]
        residual = torch.full_like(u, SOURCE)
        for dim, spacing in zip((-2, -1), self.grid.spacing, strict=True):
            slope = central_difference_replicate(u, spacing, dim)
            residual = residual + a * central_difference_replicate(slope, spacing, dim)
            residual = residual + central_difference_replicate(a, spacing, dim) * slope
        return residual

    def two_valuedness_violation(self, fields: torch.Tensor) -> torch.Tensor:
        a = fields[:, 0]
        nearest = torch.minimum((a - LOW).abs(), (a - HIGH).abs())
        return (self.normalizer.scale[0] * nearest).square().flatten(1).mean(1)

    def conservation_violation(self, fields: torch.Tensor) -> torch.Tensor:
        """Inner fluxes cancel in the mean over all cells: what is left is the flux through the walls and the source."""
        return self._consistent(fields).flatten(1).mean(1).square()

    def weak_violation(self, fields: torch.Tensor) -> torch.Tensor:
        """Between 3^2 and 12^2 times the mean square slope of (u - the solution of the sample's own coefficient)."""
        return dual_square(self._consistent(fields), self.grid.spacing[0], "cell")

    def resolve(self, fields: torch.Tensor) -> torch.Tensor:
        """The solution for each sample's own coefficient, thresholded half-way between its two values. float64."""
        self.check_fields(fields)
        a = np.where(fields[:, 0].detach().cpu().numpy() >= (LOW + HIGH) / 2, HIGH, LOW)
        return torch.from_numpy(np.stack([a, darcy_solver.solve(a, SOURCE)], axis=1)).to(fields.device)

    def resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        return relative_error(fields[:, 1].double(), self.resolve(fields)[:, 1])

    def trivial_resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """The solution of the mean coefficient's inverse mean, u(a = const): what ignores where the coefficient is."""
        truth = self.resolve(fields)
        constant = 1 / (1 / truth[:, 0]).mean((-2, -1), keepdim=True)
        guess = torch.from_numpy(darcy_solver.solve(np.ones((1, *self.grid.shape)), SOURCE)).to(truth) / constant
        return relative_error(guess, truth[:, 1])

    def marginal(self, fields: torch.Tensor) -> torch.Tensor:
        return fields[:, 0]

    def augment(self, fields: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """The eight symmetries of the square."""
        return random_square_symmetry(fields, rng)


def _outflow(a: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """h times the flux out of each cell through its two faces along the last axis (b, 1, n, n)."""
    inner = 2 * a[..., 1:] * a[..., :-1] / (a[..., 1:] + a[..., :-1])
    faces = torch.cat([2 * a[..., :1], inner, 2 * a[..., -1:]], dim=-1)
    flux = faces * F.pad(u, (1, 1)).diff(dim=-1)
    return -flux.diff(dim=-1)


def _element_gradient(a: torch.Tensor, u: torch.Tensor, i: int, j: int) -> torch.Tensor:
    """Derivative by each corner value of the quarters' (i, j) energies of the slope along the last axis (b, 1, n, n).

    At the centre of quarter (i, j) the slope of the bilinear u is 3/4 of row i's difference and 1/4 of the other row's.
    """
    slopes = u.diff(dim=-1)
    near, far = (slopes[..., :-1, :], slopes[..., 1:, :]) if i == 0 else (slopes[..., 1:, :], slopes[..., :-1, :])
    n = u.shape[-1] - 1
    stress = 0.25 * a[..., i : i + n, j : j + n] * (0.75 * near + 0.25 * far)
    rows = [F.pad(0.75 * stress, (0, 0, i, 1 - i)), F.pad(0.25 * stress, (0, 0, 1 - i, i))]
    return -F.pad(rows[0] + rows[1], (1, 1)).diff(dim=-1)
