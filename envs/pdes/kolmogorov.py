"""Kolmogorov flow: forced, damped two-dimensional turbulence (Shu et al. 2023, arXiv 2211.14680; PIRF, arXiv 2509.20570).

    w_t + u . grad w = lap w / Re - 0.1 w - 4 cos 4y,  (y, x) in [0, 2 pi]^2 periodic;  lap psi = -w, u = psi_y, v = -psi_x

Three channels w (b, 3, y, x): the vorticity in 1/s at t, t + 1/32 and t + 2/32 s. Rows are y_i = 2 pi i/n, columns are
x_j = 2 pi j/n. Model units: w / 12.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import numpy as np
import torch

from envs.numerics import seeding
from envs.numerics.grids import Axis, Grid
from envs.numerics.normalization import Normalizer
from envs.pdes.base import PDE, register, relative_error
from envs.pdes.kolmogorov_solver import (
    DRAG,
    EXTENT,
    FORCING,
    FORCING_WAVENUMBER,
    FRAMES_PER_SECOND,
    advance,
    burn_in,
    initial_spectrum,
    next_frame,
    pad_spectrum,
    rates_of,
    truncate_spectrum,
    velocity_factor,
    wavenumbers,
    windows,
)

MODEL_SCALE = 12.0
DEFAULT_REYNOLDS = 1000.0
FRAMES = 3
WINDOWS_PER_TRAJECTORY = 32
"""Samples per trajectory: the ids 32 t .. 32 t + 31 are the windows of trajectory t, 1 s apart.

A window costs all windows before it, so ask for whole multiples. Each stream has trajectories of its own, so training and test
data share none. Correlation of the fluctuations of two windows 1 s apart, by Reynolds number:

========  ====  ====  ====  ====
Re        40    100   200   1000
========  ====  ====  ====  ====
windows   .88   .57   .41   .31
========  ====  ====  ====  ====

The random symmetry of each sample lowers the correlation to .02. It does not change the enstrophy, whose correlation at Re 40
is .88 after 1 s and .2 after 16 s. Data at a low Reynolds number therefore need several trajectories.
"""
MIN_SOLVER_POINTS = 32
SOLVER_BATCH_POINTS = 8 * 64**2
SPEED_LIMIT = 8.0
"""Largest |u| or |v|, 8 standard deviations at Re 1000, that the flow map advances. Frames beyond it are scaled down to it.

The limit keeps the flow map stable on any field at n/20 substeps per frame. The residual of a frame beyond it is at least
the cut part over dt, far above every residual of exact data.
"""
SYMMETRY_SHIFTS = 8


@register
class Kolmogorov(PDE):
    """Kolmogorov flow on an n x n grid of the torus [0, 2 pi]^2, n a multiple of 8: forced, damped turbulence.

    The equation is w_t + u . grad w = F with F = lap w / Re - 0.1 w - 4 cos 4y. The channels are the vorticity w at t, t + 1/32
    and t + 2/32 s, in 1/s. The residual maps of the operators have the units of w/t:

    ``consistent``  (w_{i+1} - G w_i) / dt (b, 2, n, n), where G is the ETDRK4 flow map over dt. G is dealiased on 3n/2 points and
                    keeps every mode of the grid, the Nyquist modes included.
    ``simpson``     (w_2 - w_0) / 2dt - (R_0 + 4 R_1 + R_2) / 6 (b, 1, n, n), R = F - u . grad w dealiased in the same way. The
                    unrewarded check. It is nearly blind to odd-even flicker in time, so it is no reward.
    ``paper``       Reference operator with its errors: (w_2 - w_0) / 2dt - R_1 (b, 1, n, n), with aliased products on the grid.

    The condition is:

    ``mean``        Mean square over the frames of their mean vorticity.

    Mean square residual of exact data (the floor) + the part that white noise of 1e-3 in model units adds. The floor is the
    stress of scales that the grid does not store. It shows whether a grid resolves a Reynolds number. It differs from field to
    field with their roughness, hence the ranges over single samples. The ratios of the operators on a field hardly differ.

    =========  ====================  ====================  ===================  ==========  ========
    grid, Re   consistent            simpson               paper                std of w    resolved
    =========  ====================  ====================  ===================  ==========  ========
    32, 40     6e-4 to .05 + .26     9e-4 to .07 + .08     .002 to .17 + .09    2.3 to 3.4  yes
    32, 50     .006 to .10 + .27     .008 to .15 + .08     .018 to .28 + .09    2.3 to 3.9  yes
    64, 100    5e-4 to .06 + .25     .001 to .12 + .11     .002 to .21 + .14    2.8 to 4.3  yes
    64, 200    .09 to 1.0 + .26      .15 to 1.8 + .11      .24 to 3.0 + .15     3.3 to 4.6  no
    128, 1000  .43 to .87 + .27      .96 to 1.7 + .23      3.7 to 16 + .40      3.8 to 4.5  no
    256, 1000  3e-5 to .004 + .23    .009 to .84 + .84     .7 to 21 + 1.6       3.8 to 5.2  yes
    =========  ====================  ====================  ===================  ==========  ========
    """

    env_id = "Kolmogorov-v0"
    equation = "w_t + u . grad w = lap w / Re - 0.1 w - 4 cos 4y, periodic"
    channels = ("w0", "w1", "w2")
    inputs = ("w0",)
    units = "vorticity in 1/s at t, t + 1/32 s, t + 2/32 s; rows y in [0, 2 pi), columns x in [0, 2 pi)"
    solver = (
        "ETDRK4 pseudo-spectral, 2n points a side (3n/2 above n = 128, at least 32), 2/3 dealiased, fastest mode 1.2 radians a step,"
        " float64 within a sample"
    )
    default_operator = "consistent"
    unrewarded_operator = "simpson"
    default_resolution = 256
    default_parameters: ClassVar[dict[str, float]] = {"reynolds": DEFAULT_REYNOLDS}

    def __init__(self, resolution: int | None = None, **parameters: float) -> None:
        """Set the resolution and the parameter ``reynolds``. ValueError if a value is not allowed."""
        super().__init__(resolution, **parameters)
        if self.resolution % SYMMETRY_SHIFTS:
            raise ValueError(f"resolution of {self.env_id} must be a multiple of {SYMMETRY_SHIFTS}, got {self.resolution}")
        self.reynolds = self.parameters["reynolds"]
        if not (np.isfinite(self.reynolds) and self.reynolds > 0):
            raise ValueError(f"reynolds of {self.env_id} must be positive and finite, got {self.reynolds}")

    @property
    def grid(self) -> Grid:
        """The periodic grid of the torus, rows y and columns x."""
        n = self.resolution
        return Grid(
            rows=Axis(name="y", extent=EXTENT, size=n, layout="periodic"),
            columns=Axis(name="x", extent=EXTENT, size=n, layout="periodic"),
        )

    @property
    def normalizer(self) -> Normalizer:
        """The conversion w / 12 of each frame."""
        return Normalizer(scale=(1 / MODEL_SCALE,) * FRAMES, shift=(0.0,) * FRAMES)

    @property
    def solved_together(self) -> int:
        """The number of samples that share a trajectory."""
        return WINDOWS_PER_TRAJECTORY

    @property
    def solver_points(self) -> int:
        """Points per side of the solver's grid: twice the resolution up to 128, above it 3/2 of the resolution."""
        return max(MIN_SOLVER_POINTS, self.resolution * 2 if self.resolution <= 128 else self.resolution * 3 // 2)

    def solve(self, seed: int, stream: str, sample_ids: Sequence[int]) -> torch.Tensor:
        """Return the samples (b, 3, n, n), float64. Sample i is window i mod 32 of trajectory i div 32, in a random symmetry."""
        fields = torch.empty(len(sample_ids), *self.shape, dtype=torch.float64)
        wanted: dict[int, dict[int, list[int]]] = {}
        for position, sample in enumerate(sample_ids):
            trajectory, window = divmod(int(sample), WINDOWS_PER_TRAJECTORY)
            wanted.setdefault(trajectory, {}).setdefault(window, []).append(position)
        batch = max(1, SOLVER_BATCH_POINTS // self.solver_points**2)
        for chunk in seeding.chunks(len(wanted), batch):
            group = [list(wanted)[i] for i in chunk]
            for window, frames in enumerate(self._trajectories(seed, stream, group, 1 + max(max(wanted[t]) for t in group))):
                for trajectory, w in zip(group, frames, strict=True):
                    for position in wanted[trajectory].get(window, ()):
                        rng = seeding.generator(seed, f"{stream} symmetry", int(sample_ids[position]))
                        fields[position] = self.augment(w[None], rng)[0]
        return fields

    def _trajectories(self, seed: int, stream: str, trajectories: Sequence[int], count: int) -> Iterator[torch.Tensor]:
        """Yield ``count`` windows (len(trajectories), 3, n, n), one after another."""
        initial = initial_spectrum(seed, stream, trajectories, self.solver_points)
        for frames in windows(burn_in(initial, self.reynolds), self.reynolds, count):
            yield self._to_grid(frames)

    def _to_grid(self, spectrum: torch.Tensor) -> torch.Tensor:
        """Return the fields on this grid of spectra on a finer grid. The modes |kx|, |ky| <= n/2 are exact."""
        n = self.resolution
        fields: torch.Tensor = torch.fft.irfft2(truncate_spectrum(spectrum, n), s=(n, n))
        return fields

    def _padded(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the spectra of fields on 3n/2 points, where 2/3 dealiasing keeps every mode of this grid."""
        return pad_spectrum(torch.fft.rfft2(fields), 3 * self.resolution // 2)

    @property
    def operators(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The operators ``consistent``, ``simpson`` and ``paper``."""
        return {"consistent": self._flow_map, "simpson": self._simpson, "paper": self._paper}

    @property
    def conditions(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The condition ``mean``."""
        return {"mean": self.mean_violation}

    @property
    def flow_substeps(self) -> int:
        """Number of substeps of the flow map between two frames: 2.5 radians per step at the speed limit, which is stable."""
        return max(2, -(-self.resolution // 20))

    def _velocity(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the velocity (u, v) on this grid (..., 2, n, n)."""
        n, spectrum = self.resolution, torch.fft.rfft2(fields)
        factor = velocity_factor(n, spectrum.dtype, spectrum.device)
        velocity: torch.Tensor = torch.fft.irfft2(spectrum[..., None, :, :] * factor, s=(n, n))
        return velocity

    def _flow_map(self, fields: torch.Tensor) -> torch.Tensor:
        frames = fields[:, :-1]
        speed = self._velocity(frames).abs().amax((-3, -2, -1))[..., None, None]
        start = self._padded(frames * (SPEED_LIMIT / speed.clamp_min(SPEED_LIMIT)))
        advanced = advance(start, self.reynolds, 1 / FRAMES_PER_SECOND, self.flow_substeps)
        residual: torch.Tensor = (fields[:, 1:] - self._to_grid(advanced)) * FRAMES_PER_SECOND
        return residual

    def _simpson(self, fields: torch.Tensor) -> torch.Tensor:
        rate = self._to_grid(rates_of(self._padded(fields), self.reynolds))
        mean_rate = (rate[:, :1] + 4 * rate[:, 1:2] + rate[:, 2:]) / 6
        return (fields[:, 2:] - fields[:, :1]) * (FRAMES_PER_SECOND / 2) - mean_rate

    def _paper(self, fields: torch.Tensor) -> torch.Tensor:
        n, w = self.resolution, fields[:, 1:2]
        spectrum = torch.fft.rfft2(w)
        ky, kx = (torch.as_tensor(k, dtype=w.dtype, device=w.device) for k in wavenumbers(n))
        laplacian = -(kx**2 + ky**2) * spectrum
        slope = self._velocity(torch.fft.irfft2(-laplacian, s=(n, n)))  # (u, v) = (psi_y, -psi_x) with psi = w: (w_y, -w_x)
        u, v = self._velocity(w).unbind(-3)
        advection = v * slope[..., 0, :, :] - u * slope[..., 1, :, :]  # aliased, as in the reference
        y = torch.as_tensor(self.grid.rows.coordinates, dtype=w.dtype, device=w.device)[:, None]
        w_t = (fields[:, 2:] - fields[:, :1]) * (FRAMES_PER_SECOND / 2)
        diffusion = torch.fft.irfft2(laplacian, s=(n, n)) / self.reynolds
        residual: torch.Tensor = w_t + advection - diffusion + DRAG * w + FORCING * torch.cos(FORCING_WAVENUMBER * y)
        return residual

    def mean_violation(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the mean square (b,) over the frames of their mean vorticity, which is zero on a torus."""
        violation: torch.Tensor = fields.mean((-2, -1)).square().mean(1)
        return violation

    def resolve(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the solutions (b, 3, n, n), float64, from frame 0 of each sample, extended to the solver's grid."""
        spectrum = pad_spectrum(torch.fft.rfft2(fields[:, 0].double()), self.solver_points)
        frames = [fields[:, 0].double()]
        for _ in range(FRAMES - 1):
            spectrum = next_frame(spectrum, self.reynolds)
            frames.append(self._to_grid(spectrum))
        return torch.stack(frames, dim=1)

    def resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the relative L2 error (b,) of frames 1 and 2 against the re-solved frames."""
        return relative_error(fields[:, 1:].double(), self.resolve(fields)[:, 1:])

    def trivial_resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the error (b,) of persistence: frame 0 repeated."""
        truth = self.resolve(fields)[:, 1:]
        return relative_error(fields[:, :1].double().expand_as(truth), truth)

    def augment(self, fields: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Return the fields, each moved by a random element of the symmetry group of the equation and of its data's law.

        The group consists of the translations in x, the rotation by pi, w(-x, -y), and shifts in y by j pi/4. The shift is
        w(x, y + j pi/4) for even j and the glide -w(-x, y + j pi/4) for odd j. The forcing changes its sign under y + pi/4, and
        the vorticity changes its sign under the mirror x -> -x.
        """
        n, size = self.resolution, len(fields)
        shifts, eighths, turns = rng.integers(n, size=size), rng.integers(SYMMETRY_SHIFTS, size=size), rng.integers(2, size=size)
        return torch.stack([self.moved(w, *map(int, g)) for w, *g in zip(fields, shifts, eighths, turns, strict=True)])

    def moved(self, w: torch.Tensor, shift: int, eighths: int, turn: int) -> torch.Tensor:
        """Return w (..., n, n) moved by an element of the group of ``augment``.

        ``shift`` is the number of points in x, ``eighths`` is j, and ``turn`` is 1 for the rotation by pi.
        """
        w = torch.roll(w, (-eighths * (self.resolution // SYMMETRY_SHIFTS), shift), dims=(-2, -1))
        if eighths % 2:
            w = -_mirror(w, -1)
        return _mirror(w, -1, -2) if turn else w

    def marginal(self, fields: torch.Tensor) -> torch.Tensor:
        """Return frame 0 (b, 1, n, n)."""
        return fields[:, :1]


def _mirror(w: torch.Tensor, *dims: int) -> torch.Tensor:
    """Return w with x_j -> -x_j on the given periodic axes: index j becomes -j mod n."""
    return torch.roll(w.flip(dims), (1,) * len(dims), dims=dims)
