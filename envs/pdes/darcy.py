"""Darcy flow (Huang et al. 2024, arXiv 2406.17763): -div(a grad u) = 1 on [0, 1]^2, u = 0 on the wall.

The coefficient a is 12 if the Gaussian random field of envs.numerics.random_fields (alpha 2, tau 3) is >= 0, else 3. Channels
(a, u) at cell centres, h = 1/n, dimensionless. Model units: 0.2 a - 1.5, 115 u - 0.9.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

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
"""The two values of the coefficient."""
SOURCE = 1.0
RAMP = (4.5, 10.5)
"""Interval in which a coefficient blends from LOW to HIGH and has a gradient. Outside it counts as exactly LOW or HIGH."""


def soft_threshold(a: torch.Tensor) -> torch.Tensor:
    """Return LOW up to the start of RAMP, HIGH from its end, and LOW + (HIGH - LOW) (3 t^2 - 2 t^3) between, t in [0, 1].

    The function is continuously differentiable and exact on exact data.
    """
    t = ((a - RAMP[0]) / (RAMP[1] - RAMP[0])).clamp(0, 1)
    return LOW + (HIGH - LOW) * t.square() * (3 - 2 * t)


@register
class Darcy(PDE):
    """Darcy flow -div(a grad u) = 1 on n x n cells of the unit square, u = 0 on the wall, a in {3, 12}.

    The channels are (a, u), dimensionless. Every operator takes the coefficient through ``soft_threshold``. The residual maps
    have the units of the source:

    ``consistent``  Finite volumes as in the solver: sum of the fluxes out of each cell / h^2 - 1 (b, 1, n, n), with harmonic
                    face coefficients and walls at half a cell.
    ``galerkin``    Bilinear elements whose corners are cell centres, with a constant coefficient in each quarter
                    (b, 1, n-2, n-2). Its order at jumps of a is 1. The unrewarded check.
    ``paper``       Non-conservative a lap u + grad a . grad u + 1 of the reference (b, 1, n, n), with composed central
                    differences and replicate padding. u = 0 has a smaller residual than exact data. For comparison only.

    The conditions are:

    ``two_valued``    Mean squared distance of a to the nearer of 3 and 12, model units.
    ``conservation``  Square of (flux out of the walls - source of the whole square).
    ``weak``          Squared H^-1 norm of the consistent residual (envs.numerics.dual_norms).
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
    condition_weights: ClassVar[dict[str, float]] = {"two_valued": 0.5, "conservation": 0.2, "weak": 1.5}

    @property
    def grid(self) -> Grid:
        """The cells of the unit square."""
        rows, columns = (Axis(name=name, extent=1.0, size=self.resolution, layout="cell") for name in "xy")
        return Grid(rows=rows, columns=columns)

    @property
    def normalizer(self) -> Normalizer:
        """The conversions 0.2 a - 1.5 and 115 u - 0.9."""
        return Normalizer(scale=(0.2, 115.0), shift=(-1.5, -0.9))

    def solve(self, seed: int, stream: str, sample_ids: Sequence[int]) -> torch.Tensor:
        """Return random coefficients with their solutions (b, 2, n, n), float64."""
        a = np.where(neumann_field(seed, stream, sample_ids, self.resolution) >= 0, HIGH, LOW)
        return torch.from_numpy(np.stack([a, darcy_solver.solve(a, SOURCE)], axis=1))

    @property
    def operators(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The operators ``consistent``, ``galerkin`` and ``paper``."""
        return {"consistent": self._consistent, "galerkin": self._galerkin, "paper": self._paper}

    @property
    def conditions(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The conditions ``two_valued``, ``conservation`` and ``weak``."""
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
        # An element with corners u_ij has the energy: sum over its quarters of a_ij |grad u(centre of the quarter)|^2 h^2/4 / 2.
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
        """Return the mean squared distance (b,) of a to the nearer of its two values, model units."""
        a = fields[:, 0]
        nearest = torch.minimum((a - LOW).abs(), (a - HIGH).abs())
        return (self.normalizer.scale[0] * nearest).square().flatten(1).mean(1)

    def conservation_violation(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the square (b,) of (flux out of the walls - source of the whole square).

        Inner fluxes cancel in the mean of the residual over all cells.
        """
        return self._consistent(fields).flatten(1).mean(1).square()

    def weak_violation(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the squared H^-1 norm (b,) of the consistent residual.

        It is between 3^2 and 12^2 times the mean square slope of u - (re-solved u).
        """
        return dual_square(self._consistent(fields), self.grid.spacing[0], "cell")

    def resolve(self, fields: torch.Tensor) -> torch.Tensor:
        """Return each sample's coefficient, thresholded half-way between its two values, with its solution (b, 2, n, n), float64."""
        self.check_fields(fields)
        a = np.where(fields[:, 0].detach().cpu().numpy() >= (LOW + HIGH) / 2, HIGH, LOW)
        return torch.from_numpy(np.stack([a, darcy_solver.solve(a, SOURCE)], axis=1)).to(fields.device)

    def resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the relative L2 error (b,) of u against the re-solved u."""
        return relative_error(fields[:, 1].double(), self.resolve(fields)[:, 1])

    def trivial_resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the error (b,) of the solution for a constant coefficient: the harmonic mean of the sample's a.

        This competitor ignores where the two values of a lie.
        """
        truth = self.resolve(fields)
        constant = 1 / (1 / truth[:, 0]).mean((-2, -1), keepdim=True)
        guess = torch.from_numpy(darcy_solver.solve(np.ones((1, *self.grid.shape)), SOURCE)).to(truth) / constant
        return relative_error(guess, truth[:, 1])

    def marginal(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the coefficient a (b, n, n)."""
        return fields[:, 0]

    def augment(self, fields: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Return the fields, each moved by a random symmetry of the square."""
        return random_square_symmetry(fields, rng)


def _outflow(a: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """Return h times the flux (b, 1, n, n) out of each cell through its two faces along the last axis."""
    inner = 2 * a[..., 1:] * a[..., :-1] / (a[..., 1:] + a[..., :-1])
    faces = torch.cat([2 * a[..., :1], inner, 2 * a[..., -1:]], dim=-1)
    flux = faces * F.pad(u, (1, 1)).diff(dim=-1)
    return -flux.diff(dim=-1)


def _element_gradient(a: torch.Tensor, u: torch.Tensor, i: int, j: int) -> torch.Tensor:
    """Return the derivative (b, 1, n, n) by each corner value of the energy of the quarters (i, j).

    The energy counts the slope along the last axis only. The slope at the centre of a quarter (i, j) is 3/4 of the difference
    in row i plus 1/4 of the difference in the other row.
    """
    slopes = u.diff(dim=-1)
    near, far = (slopes[..., :-1, :], slopes[..., 1:, :]) if i == 0 else (slopes[..., 1:, :], slopes[..., :-1, :])
    n = u.shape[-1] - 1
    stress = 0.25 * a[..., i : i + n, j : j + n] * (0.75 * near + 0.25 * far)
    rows = [F.pad(0.75 * stress, (0, 0, i, 1 - i)), F.pad(0.25 * stress, (0, 0, 1 - i, i))]
    return -F.pad(rows[0] + rows[1], (1, 1)).diff(dim=-1)
