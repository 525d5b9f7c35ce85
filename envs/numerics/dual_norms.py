"""The H^-1 norm of an elliptic residual R = lap_h e, where e is the error of the solution.

    ||R||^2_{-1} = <R, (-lap_h)^-1 R> = <|grad_h e|^2>,  < > the mean over the grid's points

This norm is equivalent to the energy norm of e. It weighs an error of wavenumber k by k^2. The mean square residual weighs
the error by k^4 and hardly sees the large scales, which hold most of the error.
"""

from functools import lru_cache

import numpy as np
import scipy.fft
import torch


def interior_sine_modes(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the orthonormal DST-I (m, m) of m vertices between two walls, and its eigenvalues (m,).

    The eigenvalues belong to -h^2 d^2/dx^2 by second differences.
    """
    return scipy.fft.dst(np.eye(points), type=1, norm="ortho"), 2 - 2 * np.cos(np.pi * np.arange(1, points + 1) / (points + 1))


def cell_sine_modes(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the orthonormal DST-II (n, n) of n cells whose walls are half a cell outside, and its eigenvalues (n,).

    The eigenvalues belong to -h^2 d^2/dx^2 by second differences.
    """
    transform = scipy.fft.dst(np.eye(points), type=2, norm="ortho", axis=0)
    return transform, 2 - 2 * np.cos(np.pi * np.arange(1, points + 1) / points)


MODES = {"vertex": interior_sine_modes, "cell": cell_sine_modes}


@lru_cache(maxsize=16)
def _transform(points: int, layout: str, spacing: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    transform, one = MODES[layout](points)
    return transform, 1 / ((one[:, None] + one) / spacing**2 - shift)


def dual_square(residual: torch.Tensor, spacing: float, layout: str, shift: float = 0.0) -> torch.Tensor:
    """Return ||R||^2 (b,) in the dual norm of -(lap + shift) with Dirichlet walls, from R (b, 1, m, m). Differentiable.

    R covers all unknowns of a square: m^2 interior vertices (``layout`` "vertex") or m^2 cells ("cell"). ``shift`` must lie
    below the first eigenvalue of -lap, about 2 pi^2.
    """
    transform, inverse = (torch.from_numpy(a).to(residual) for a in _transform(residual.shape[-1], layout, spacing, shift))
    modes = transform @ residual @ transform.mT
    return (modes.square() * inverse).flatten(1).mean(1)
