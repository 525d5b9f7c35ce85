"""The H^-1 norm of an elliptic residual: its natural norm, equivalent to the solution's error in the energy norm.

    ||R||^2_{-1} = <R, (-lap_h)^-1 R>,  the mean over the grid's points;  with R = lap_h e it is the mean of |grad_h e|^2

A mean square residual weighs an error e of wavenumber k by k^4 and hardly sees the large scales, where most of the
solution's error is; this norm weighs it by k^2.
"""

from functools import lru_cache

import numpy as np
import scipy.fft
import torch


def interior_sine_modes(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Vertices between two walls: orthonormal DST-I (m, m) and the eigenvalues (m,) of -d^2/dx^2 by second differences, times h^2."""
    return scipy.fft.dst(np.eye(points), type=1, norm="ortho"), 2 - 2 * np.cos(np.pi * np.arange(1, points + 1) / (points + 1))


def cell_sine_modes(points: int) -> tuple[np.ndarray, np.ndarray]:
    """Cells between two walls at half a cell: orthonormal DST-II (n, n) and the eigenvalues (n,), times h^2."""
    transform = scipy.fft.dst(np.eye(points), type=2, norm="ortho", axis=0)
    return transform, 2 - 2 * np.cos(np.pi * np.arange(1, points + 1) / points)


MODES = {"vertex": interior_sine_modes, "cell": cell_sine_modes}


@lru_cache(maxsize=16)
def _transform(points: int, layout: str, spacing: float, shift: float) -> tuple[np.ndarray, np.ndarray]:
    transform, one = MODES[layout](points)
    return transform, 1 / ((one[:, None] + one) / spacing**2 - shift)


def dual_square(residual: torch.Tensor, spacing: float, layout: str, shift: float = 0.0) -> torch.Tensor:
    """||R||^2 in the dual norm of -(lap + shift) with Dirichlet walls (b,), from R (b, 1, m, m) on all unknowns of a square.

    ``layout``: ``vertex`` (m interior vertices) or ``cell``. ``shift`` must lie below the operator's first eigenvalue,
    about 2 pi^2. Differentiable.
    """
    transform, inverse = (torch.from_numpy(a).to(residual) for a in _transform(residual.shape[-1], layout, spacing, shift))
    modes = transform @ residual @ transform.mT
    return (modes.square() * inverse).flatten(1).mean(1)
