"""Pseudo-spectral solver of forced, damped two-dimensional turbulence (Kolmogorov flow) in vorticity form.

    w_t + u . grad w = lap w / Re - 0.1 w - 4 cos 4y  on the torus [0, 2 pi]^2
    lap psi = -w,  u = psi_y,  v = -psi_x  (so div u = 0 and w = v_x - u_y)

Arrays are (..., y, x): rows are y, columns are x. Spectra are ``rfft2`` coefficients (..., n, n//2 + 1), with the x axis halved.
The wavenumbers of this torus are integers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields as dataclass_fields
from functools import lru_cache

import numpy as np
import torch

from envs.numerics import seeding
from envs.numerics.etdrk4 import ETDRK4

EXTENT = 2 * np.pi
DRAG = 0.1
FORCING = 4.0
FORCING_WAVENUMBER = 4
FRAMES_PER_SECOND = 32
BURN_IN_TIME = 48
"""Seconds from the initial law to stationary statistics.

The enstrophy <w^2> is stationary after 12 s at Re 1000, at 20. Patterns live longer at Re 40: the enstrophy is 8.0 +- .2 from
24 to 44 s, and 8.66 +- .05 from 44 to 264 s. Drag alone acts within 10 s.
"""
WINDOW_SPACING = 1.0
"""Seconds between the starts of two windows."""
IC_ALPHA, IC_TAU, IC_MODES = 2.5, 7.0, 8


def wavenumbers(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the integer wavenumbers ky (points, 1) and kx (1, points//2 + 1) of ``rfft2``."""
    ky = np.fft.fftfreq(points, 1 / points)[:, None]
    return ky, np.arange(points // 2 + 1, dtype=np.float64)[None, :]


def _inverse_square(ky: np.ndarray, kx: np.ndarray) -> np.ndarray:
    """Return 1/|k|^2, and 0 at k = 0, since the streamfunction has no mean."""
    square = ky**2 + kx**2
    inverse: np.ndarray = np.divide(1.0, square, out=np.zeros_like(square), where=square > 0)
    return inverse


@lru_cache(maxsize=32)
def velocity_factor(points: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the factors (2, points, points//2 + 1) of the vorticity's spectrum that give the spectra of (u, v).

    The factors are odd in k, so the Nyquist modes are dropped.
    """
    ky, kx = wavenumbers(points)
    factor = np.stack([1j * ky * _inverse_square(ky, kx), -1j * kx * _inverse_square(ky, kx)])
    factor[0, points // 2, :] = 0
    factor[1, :, points // 2] = 0
    return torch.as_tensor(factor, device=device).to(dtype)


@lru_cache(maxsize=32)
def _stress_factor(points: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the factors (2, ...) of (uv, v^2 - u^2) in -u . grad w = -(d_xx - d_yy)(uv) - d_xy(v^2 - u^2), 2/3 dealiased."""
    ky, kx = wavenumbers(points)
    keep = (np.abs(ky) <= points // 3) & (kx <= points // 3)
    return torch.as_tensor(np.stack([(kx**2 - ky**2) * keep, kx * ky * keep]), dtype=dtype, device=device)


@lru_cache(maxsize=32)
def forcing_spectrum(points: int, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return the spectrum of -4 cos 4y."""
    y = torch.arange(points, dtype=torch.float64) * (EXTENT / points)
    field = -FORCING * torch.cos(FORCING_WAVENUMBER * y)[:, None].expand(points, points)
    spectrum: torch.Tensor = torch.fft.rfft2(field).to(device=device, dtype=dtype)
    return spectrum


def _real(dtype: torch.dtype) -> torch.dtype:
    return torch.float32 if dtype == torch.complex64 else torch.float64


def nonlinear_and_forcing(spectrum: torch.Tensor) -> torch.Tensor:
    """Return N(w) = -u . grad w - 4 cos 4y in Fourier space, 2/3 dealiased: modes above a third of the points are dropped."""
    points, kind, device = spectrum.shape[-2], spectrum.dtype, spectrum.device
    velocity = torch.fft.irfft2(spectrum[..., None, :, :] * velocity_factor(points, kind, device), s=(points, points))
    u, v = velocity.unbind(-3)
    stress = torch.fft.rfft2(torch.stack([u * v, (v - u) * (v + u)], dim=-3))
    a, b = (stress * _stress_factor(points, _real(kind), device)).unbind(-3)
    rate: torch.Tensor = a + b + forcing_spectrum(points, kind, device)
    return rate


def linear_rates(points: int, reynolds: float) -> np.ndarray:
    """Return the rates -|k|^2 / Re - 0.1 of the modes (points, points//2 + 1)."""
    ky, kx = wavenumbers(points)
    rates: np.ndarray = -(ky**2 + kx**2) / reynolds - DRAG
    return rates


@lru_cache(maxsize=32)
def _stepper(points: int, reynolds: float, dt: float, dtype: torch.dtype, device: torch.device) -> ETDRK4:
    rates = linear_rates(points, reynolds)
    flat = ETDRK4.create(rates.ravel(), dt, dtype=dtype, device=device)
    return ETDRK4(**{f.name: getattr(flat, f.name).reshape(rates.shape) for f in dataclass_fields(ETDRK4)})


def advance(spectrum: torch.Tensor, reynolds: float, duration: float, substeps: int) -> torch.Tensor:
    """Return the ``rfft2`` coefficients (..., n, n//2 + 1) advanced by ``duration`` seconds, by ETDRK4."""
    points = spectrum.shape[-2]
    stepper = _stepper(points, reynolds, duration / substeps, _real(spectrum.dtype), spectrum.device)
    for _ in range(substeps):
        spectrum = stepper.step(spectrum, nonlinear_and_forcing)
    return spectrum


def pad_spectrum(spectrum: torch.Tensor, padded: int) -> torch.Tensor:
    """Return the ``rfft2`` coefficients on a finer grid of the real interpolant through every value of an n x n grid.

    Each Nyquist coefficient is shared between +n/2 and -n/2, so no mode of the coarse grid is lost.
    """
    n = spectrum.shape[-2]
    if padded <= n:
        raise ValueError(f"padded size must exceed {n}, got {padded}")
    h = n // 2
    scaled = spectrum * (padded / n) ** 2
    middle = 0.5 * scaled[..., h : h + 1, :]
    gap = scaled.new_zeros(*scaled.shape[:-2], padded - n - 1, scaled.shape[-1])
    rows = torch.cat([scaled[..., :h, :], middle, gap, middle, scaled[..., h + 1 :, :]], dim=-2)
    rows = torch.cat([rows[..., :h], 0.5 * rows[..., h:]], dim=-1)
    return torch.nn.functional.pad(rows, (0, padded // 2 - h))


def truncate_spectrum(spectrum: torch.Tensor, size: int) -> torch.Tensor:
    """Return the ``rfft2`` coefficients on a coarser grid of the modes |kx|, |ky| <= size/2. Inverse of ``pad_spectrum``."""
    points, h = spectrum.shape[-2], size // 2
    rows = spectrum[..., : h + 1] * (size / points) ** 2
    middle = rows[..., h : h + 1, :] + rows[..., points - h : points - h + 1, :]
    rows = torch.cat([rows[..., :h, :], middle, rows[..., points - h + 1 :, :]], dim=-2)
    # irfft2 takes the real part of the Nyquist column: the mean of the modes +n/2 and -n/2. Their sum is twice the mean.
    return torch.cat([rows[..., :h], 2 * rows[..., h:]], dim=-1)


def initial_spectrum(seed: int, stream: str, trajectories: Sequence[int], points: int) -> torch.Tensor:
    """Return the spectra of Gaussian random fields (Li et al. 2021, arXiv 2010.08895), alpha 2.5, tau 7, zero mean.

    The modes are |kx|, |ky| <= 8 in
    w = Re sum_k sqrt(2) tau^(alpha - 1) (4 pi^2 |k|^2 + tau^2)^(-alpha/2) (xi_k + i eta_k) exp(i k . x); std about 0.26.
    """
    k = np.arange(-IC_MODES, IC_MODES + 1)
    square = (k[:, None] ** 2 + k[None, :] ** 2).astype(np.float64)
    amplitude = np.sqrt(2) * IC_TAU ** (IC_ALPHA - 1) * (4 * np.pi**2 * square + IC_TAU**2) ** (-IC_ALPHA / 2) * (square > 0)
    noise = seeding.normal(seed, stream, trajectories, (2, len(k), len(k)))
    full = torch.zeros(len(noise), points, points, dtype=torch.complex128)
    index = torch.as_tensor(k % points)
    full[:, index[:, None], index[None, :]] = torch.complex(noise[:, 0], noise[:, 1]) * torch.as_tensor(amplitude)
    spectrum: torch.Tensor = torch.fft.rfft2(torch.fft.ifft2(full, norm="forward").real)
    return spectrum


def rates_of(spectrum: torch.Tensor, reynolds: float) -> torch.Tensor:
    """Return dw/dt in Fourier space."""
    rates = torch.as_tensor(linear_rates(spectrum.shape[-2], reynolds), dtype=_real(spectrum.dtype), device=spectrum.device)
    change: torch.Tensor = rates * spectrum + nonlinear_and_forcing(spectrum)
    return change


def substeps(points: int, reynolds: float, duration: float) -> int:
    """Return the number of steps of a long run of ``duration`` seconds.

    The fastest mode, points/3, turns at most 2.4 radians per step, and the limit of RK4 is 2.8. The largest speed is below
    1.4 Re^(1/5): it is 2.5 at Re 40, 3.4 at Re 100, and 4.5 at Re 200 and 1000.
    """
    steps: float = duration * 1.4 * reynolds**0.2 * (points // 3) / 2.4
    return math.ceil(steps)


def burn_in(spectrum: torch.Tensor, reynolds: float) -> torch.Tensor:
    """Return stationary turbulence from initial spectra, in single precision. Three quarters of the time use half the points."""
    points = spectrum.shape[-2]
    coarse_time = round(0.75 * BURN_IN_TIME)
    coarse = _run(truncate_spectrum(spectrum, points // 2).to(torch.complex64), reynolds, coarse_time)
    return _run(pad_spectrum(coarse, points), reynolds, BURN_IN_TIME - coarse_time)


def _run(spectrum: torch.Tensor, reynolds: float, duration: float) -> torch.Tensor:
    return advance(spectrum, reynolds, duration, substeps(spectrum.shape[-2], reynolds, duration))


def windows(spectrum: torch.Tensor, reynolds: float, count: int) -> Iterator[torch.Tensor]:
    """Yield ``count`` windows (b, 3, ...) of a long run: frames 1/32 s apart, with WINDOW_SPACING seconds between starts.

    The frames of a window are in double precision with twice the steps. The run between two windows is in single precision.
    """
    for window in range(count):
        if window:
            spectrum = _run(spectrum, reynolds, WINDOW_SPACING - 2 / FRAMES_PER_SECOND)
        frames = [spectrum.to(torch.complex128)]
        for _ in range(2):
            frames.append(next_frame(frames[-1], reynolds))
        yield torch.stack(frames, dim=1)
        spectrum = frames[-1].to(torch.complex64)


def next_frame(spectrum: torch.Tensor, reynolds: float) -> torch.Tensor:
    """Return the spectrum 1/32 s later, at the solver's accuracy."""
    steps = 2 * substeps(spectrum.shape[-2], reynolds, 1 / FRAMES_PER_SECOND)
    return advance(spectrum, reynolds, 1 / FRAMES_PER_SECOND, steps)
