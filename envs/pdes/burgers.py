"""Viscous Burgers equation (Huang et al. 2024, arXiv 2406.17763; PIRF, arXiv 2509.20570).

    u_t + u u_x = nu u_xx,  nu = 0.01,  x in [0, 1] periodic,  t in [0, 1]
    u(0, x) = sum_{k=1}^{64} l_k (xi_k cos 2 pi k x + eta_k sin 2 pi k x),  l_k = sqrt(2) 49 ((2 pi k)^2 + 49)^(-5/4)

One channel u (b, 1, t, x), dimensionless, with rows t_i = i/(n-1) and columns x_j = j/n. Model units: u / 1.415.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np
import torch

from envs.numerics import seeding
from envs.numerics.etdrk4 import ETDRK4
from envs.numerics.grids import Axis, Grid
from envs.numerics.normalization import Normalizer
from envs.numerics.operators import central_difference_replicate, spectral_derivative, zero_pad_spectrum
from envs.pdes.base import PDE, register, relative_error

VISCOSITY = 0.01
EXTENT = 1.0
FINAL_TIME = 1.0
IC_MODES = 64
MODEL_SCALE = 1.415
SOLVER_POINTS = 256
SOLVER_STEPS = 512
PADDING = 4
AMPLITUDE_LIMIT = 2.0
"""Largest |u|, 7 standard deviations of the initial law, that the flow map advances. Rows beyond it are scaled down to it.

The limit keeps the flow map stable on any field. A row beyond it has a residual of at least ((|u| - 2)/dt)^2 at its largest
value, far above every residual of exact data.
"""
TYPICALITY_NOISE = 1e-3
"""Noise on exact data, model units, that the condition ``initial_condition`` tolerates."""
TYPICALITY_SCORE = 2.0
"""Normal score up to which a band of modes counts as typical: 95% of the bands of exact data."""


def mode_amplitudes() -> np.ndarray:
    """Return the standard deviations l_k (64,), k = 1..64, of the initial condition's Fourier coefficients."""
    k = np.arange(1, IC_MODES + 1)
    amplitudes: np.ndarray = np.sqrt(2) * 49 * ((2 * np.pi * k) ** 2 + 49) ** -1.25
    return amplitudes


def initial_condition(seed: int, stream: str, sample_ids: Sequence[int], points: int) -> torch.Tensor:
    """Return random initial rows (b, points), float64."""
    xi = seeding.normal(seed, stream, sample_ids, (2, IC_MODES))
    coefficients = torch.as_tensor(mode_amplitudes()) * xi
    x = torch.arange(points, dtype=torch.float64) * (EXTENT / points)
    phase = 2 * torch.pi * torch.arange(1, IC_MODES + 1, dtype=torch.float64)[:, None] * x
    return coefficients[:, 0] @ torch.cos(phase) + coefficients[:, 1] @ torch.sin(phase)


@lru_cache(maxsize=16)
def _propagator(points: int, dt: float, dtype: torch.dtype, device: torch.device) -> tuple[ETDRK4, torch.Tensor]:
    """Return the ETDRK4 coefficients and the factor -(1/2) i k of N(v) = -(1/2) i k FFT(u^2), 2/3 dealiased."""
    k = 2 * np.pi * np.arange(points // 2 + 1) / EXTENT
    keep = np.arange(points // 2 + 1) <= points // 3
    factor = torch.as_tensor(-0.5j * k * keep, dtype=torch.complex128, device=device)
    linear = ETDRK4.create(-VISCOSITY * k**2, dt, dtype=dtype, device=device)
    return linear, factor.to(torch.complex64 if dtype == torch.float32 else torch.complex128)


def advance(spectrum: torch.Tensor, points: int, duration: float, substeps: int) -> torch.Tensor:
    """Return the ``rfft`` coefficients (..., points//2+1) of a row, advanced by ``duration`` under the Burgers equation."""
    dtype = torch.float32 if spectrum.dtype == torch.complex64 else torch.float64
    stepper, factor = _propagator(points, duration / substeps, dtype, spectrum.device)

    def nonlinear(v: torch.Tensor) -> torch.Tensor:
        rate: torch.Tensor = factor * torch.fft.rfft(torch.fft.irfft(v, n=points).square())
        return rate

    for _ in range(substeps):
        spectrum = stepper.step(spectrum, nonlinear)
    return spectrum


def solve_from(initial: torch.Tensor, num_rows: int, columns: int) -> torch.Tensor:
    """Return the solutions (b, num_rows, columns) from initial rows (b, points), with points a multiple of ``columns``."""
    points = initial.shape[-1]
    stride = points // columns
    dt = FINAL_TIME / (num_rows - 1)
    substeps = max(1, -(-SOLVER_STEPS // (num_rows - 1)))
    spectrum = torch.fft.rfft(initial)
    rows = [initial[..., ::stride]]
    for _ in range(num_rows - 1):
        spectrum = advance(spectrum, points, dt, substeps)
        rows.append(torch.fft.irfft(spectrum, n=points)[..., ::stride])
    return torch.stack(rows, dim=1)


@register
class Burgers(PDE):
    """Viscous Burgers equation u_t + u u_x = 0.01 u_xx on an n x n grid of t in [0, 1] and x in [0, 1), periodic in x.

    The channel is u (b, 1, t, x), dimensionless. The residual maps of the operators have the units of u/t:

    ``consistent``  (u_{i+1} - G u_i) / dt (b, 1, n-1, n), where G is the ETDRK4 flow map over dt, with x zero-padded 4 times.
    ``simpson``     (u_{i+1} - u_{i-1}) / 2dt - (f_{i-1} + 4 f_i + f_{i+1}) / 6 (b, 1, n-2, n), f = nu u_xx - u u_x spectral. The
                    unrewarded check. It is blind to odd-even flicker in time, so it is no reward.
    ``paper``       Reference operator with its errors (b, 1, n, n), for comparison with the literature: composed central
                    differences, replicate padding on a periodic axis, dt = dx = 1/n.

    The conditions are:

    ``initial_condition``  Atypicality of row 0 under the initial law, 0 for typical rows.
    ``mean``               Mean over the rows of (mean over x of u)^2.

    Mean square ``consistent`` residual of exact data (the floor), and of exact data with white noise of 1e-3 in model units:

    ======  ======  =====
    grid    floor   noise
    ======  ======  =====
    32^2    7.5e-6  .0026
    64^2    3.9e-7  .0099
    128^2   1e-12   .038
    ======  ======  =====
    """

    env_id = "Burgers-v0"
    equation = "u_t + u u_x = 0.01 u_xx, periodic in x"
    channels = ("u",)
    units = "dimensionless; rows t in [0, 1], columns x in [0, 1)"
    solver = f"ETDRK4 pseudo-spectral, {SOLVER_POINTS}+ points, {SOLVER_STEPS}+ steps, 2/3 dealiased, float64"
    default_operator = "consistent"
    unrewarded_operator = "simpson"
    default_resolution = 128

    @property
    def grid(self) -> Grid:
        """The space-time grid: rows t with both ends, columns x periodic."""
        return Grid(
            rows=Axis(name="t", extent=FINAL_TIME, size=self.resolution, layout="vertex"),
            columns=Axis(name="x", extent=EXTENT, size=self.resolution, layout="periodic"),
        )

    @property
    def normalizer(self) -> Normalizer:
        """The conversion u / 1.415."""
        return Normalizer(scale=(1 / MODEL_SCALE,), shift=(0.0,))

    @property
    def solver_points(self) -> int:
        """Number of points of the solver in x: a multiple of the resolution that resolves all 64 initial modes dealiased."""
        return self.resolution * max(2, -(-SOLVER_POINTS // self.resolution))

    def solve(self, seed: int, stream: str, sample_ids: Sequence[int]) -> torch.Tensor:
        """Return the solutions (b, 1, n, n), float64, from random initial conditions."""
        initial = initial_condition(seed, stream, sample_ids, self.solver_points)
        return solve_from(initial, *self.grid.shape)[:, None]

    @property
    def operators(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The operators ``consistent``, ``simpson`` and ``paper``."""
        return {"consistent": self._flow_map, "simpson": self._simpson, "paper": self._paper}

    @property
    def conditions(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The conditions ``initial_condition`` and ``mean``."""
        return {"initial_condition": self.initial_atypicality, "mean": self.mean_violation}

    @property
    def flow_substeps(self) -> int:
        """Number of substeps of the flow map between two rows: dt/substeps <= 1/124 keeps the time error below the floor."""
        return max(2, -(-124 // (self.resolution - 1)))

    def _flow_map(self, fields: torch.Tensor) -> torch.Tensor:
        n, dt = self.resolution, self.grid.spacing[0]
        rows = fields[:, :, :-1]
        rows = rows * (AMPLITUDE_LIMIT / rows.abs().amax(-1, keepdim=True).clamp_min(AMPLITUDE_LIMIT))
        spectrum = zero_pad_spectrum(torch.fft.rfft(rows), n, PADDING * n)
        advanced = torch.fft.irfft(advance(spectrum, PADDING * n, dt, self.flow_substeps), n=PADDING * n)
        residual: torch.Tensor = (fields[:, :, 1:] - advanced[..., ::PADDING]) / dt
        return residual

    def _simpson(self, fields: torch.Tensor) -> torch.Tensor:
        dt = self.grid.spacing[0]
        u_x = spectral_derivative(fields, EXTENT)
        rate = VISCOSITY * spectral_derivative(fields, EXTENT, order=2) - fields * u_x
        mean_rate = (rate[:, :, :-2] + 4 * rate[:, :, 1:-1] + rate[:, :, 2:]) / 6
        return (fields[:, :, 2:] - fields[:, :, :-2]) / (2 * dt) - mean_rate

    def _paper(self, fields: torch.Tensor) -> torch.Tensor:
        dx = dt = 1.0 / self.resolution  # the reference's spacing: wrong for t = i/(n-1), kept to reproduce its numbers
        u_t = central_difference_replicate(fields, dt, -2)
        u_x = central_difference_replicate(fields, dx, -1)
        return u_t + fields * u_x - VISCOSITY * central_difference_replicate(u_x, dx, -1)

    def initial_law(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the variance and the degrees of freedom (n//2+1,) of the Fourier coefficients of row 0 on the grid.

        A mode k above n/2 aliases onto the mode |k - n round(k/n)| exactly, so the variances add. The modes k = 0 and k = n/2
        have a cosine only.
        """
        n = self.resolution
        k = np.arange(1, IC_MODES + 1)
        landed = np.abs(k - n * np.round(k / n)).astype(int)
        variance = np.bincount(landed, weights=mode_amplitudes() ** 2, minlength=n // 2 + 1)[: n // 2 + 1]
        edge = np.isin(np.arange(n // 2 + 1), (0, n // 2))
        return variance, np.where(edge, 1, 2)

    def initial_atypicality(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the atypicality (b,) of row 0 under its law: the mean over octave bands of modes k >= 1 of max(|z| - 2, 0)^2.

        The squared standardized coefficients of a band sum to chi^2_d, and z is their Wilson-Hilferty normal score. The measure
        is two-sided: a band may be too quiet or too loud. A likelihood would favour zero. The loud side tolerates white noise of
        TYPICALITY_NOISE (model units), and the quiet side does not.
        """
        variance, freedom = self.initial_law()
        spectrum = torch.view_as_real(torch.fft.rfft(fields[:, 0, 0])).square().sum(-1)
        noise = freedom * (TYPICALITY_NOISE * MODEL_SCALE) ** 2 / self.resolution

        def tensor(values: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(values, dtype=fields.dtype, device=fields.device)

        power = spectrum * tensor((freedom / self.resolution) ** 2)
        quiet = power / tensor(np.maximum(variance, np.finfo(np.float32).tiny))
        loud = power / tensor(variance + noise)
        terms = []
        for band in self._bands():
            d = float(freedom[band].sum())
            terms.append(torch.relu(_normal_score(loud[:, band].sum(-1), d) - TYPICALITY_SCORE).square())
            if variance[band].min() > 0:
                terms[-1] = terms[-1] + torch.relu(-_normal_score(quiet[:, band].sum(-1), d) - TYPICALITY_SCORE).square()
        return torch.stack(terms, dim=1).mean(1)

    def mean_violation(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the mean over rows (b,) of (mean over x of u)^2. The mean is conserved, and 0 for every initial condition.

        The mode k = 0 has a term of its own, since its exact variance is nearly zero: in ``initial_atypicality`` it would
        outweigh all other modes.
        """
        violation: torch.Tensor = fields.mean(-1).square().flatten(1).mean(1)
        return violation

    def _bands(self) -> list[slice]:
        """Return the octaves of modes {1}, {2, 3}, {4..7}, ..., the last octave up to and with n/2."""
        half = self.resolution // 2
        edges = [1]
        while edges[-1] * 2 < half:
            edges.append(edges[-1] * 2)
        return [slice(a, b) for a, b in zip(edges, [*edges[1:], half + 1], strict=True)]

    def resolve(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the solutions (b, 1, n, n), float64, from the first row of each sample, zero-padded to the solver's points."""
        self.check_fields(fields)
        n, points = self.resolution, self.solver_points
        spectrum = torch.fft.rfft(fields[:, 0, 0].double())
        initial = torch.fft.irfft(zero_pad_spectrum(spectrum, n, points), n=points)
        return solve_from(initial, *self.grid.shape)[:, None]

    def resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the relative L2 error (b,) of the rows after row 0 against the re-solved rows."""
        return relative_error(fields[:, :, 1:].double(), self.resolve(fields)[:, :, 1:])

    def trivial_resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the error (b,) of persistence: row 0 repeated."""
        truth = self.resolve(fields)[:, :, 1:]
        return relative_error(fields[:, :, :1].double().expand_as(truth), truth)

    def augment(self, fields: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Return the fields, each translated in x at random and reflected by u(t, x) -> -u(t, -x) or not.

        Both maps keep the equation and the initial law.
        """
        shifts = rng.integers(self.resolution, size=len(fields))
        flips = rng.integers(2, size=len(fields))
        moved = [torch.roll(u, int(s), dims=-1) for u, s in zip(fields, shifts, strict=True)]
        mirrored = [-torch.roll(u.flip(-1), 1, dims=-1) if flip else u for u, flip in zip(moved, flips, strict=True)]
        return torch.stack(mirrored)

    def marginal(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the initial condition: row 0 (b, 1, n)."""
        return fields[:, :, 0]


def _normal_score(chi_square: torch.Tensor, freedom: float) -> torch.Tensor:
    """Return the normal score of S ~ chi^2_d: (S/d)^(1/3) is nearly normal, mean 1 - 2/9d, variance 2/9d.

    Wilson & Hilferty 1931. The offset keeps the gradient finite at S = 0.
    """
    variance = 2 / (9 * freedom)
    score: torch.Tensor = ((chi_square / freedom + 1e-6) ** (1 / 3) - (1 - variance)) / variance**0.5
    return score
