"""Solver of Darcy flow: cell-centred finite volumes with harmonic face coefficients, by conjugate gradients."""

import numpy as np
import scipy.fft

TOLERANCE = 1e-11
"""Ratio of the residual's to the source's root mean square at which conjugate gradients stop."""
MAX_ITERATIONS = 500
"""Iterations after which a system counts as not converged."""
BLOCK_CELLS = 4 * 128**2
"""Cells that are iterated together, few enough to stay in the processor's cache."""


class NoConvergence(RuntimeError):
    """An error about conjugate gradients that stopped above the tolerance. Its message names the largest relative residual."""


def face_coefficients(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the coefficients of the fluxes through the faces normal to rows (b, n+1, n) and to columns (b, n, n+1).

    Between cells the coefficient is the harmonic mean 2 a_l a_r / (a_l + a_r). At a wall it is 2 a: the flux over half a cell.
    """

    def along_last(v: np.ndarray) -> np.ndarray:
        inner = 2 * v[..., 1:] * v[..., :-1] / (v[..., 1:] + v[..., :-1])
        faces: np.ndarray = np.concatenate([2 * v[..., :1], inner, 2 * v[..., -1:]], axis=-1)
        return faces

    return along_last(a.swapaxes(-1, -2)).swapaxes(-1, -2), along_last(a)


def _apply(faces: tuple[np.ndarray, np.ndarray], u: np.ndarray) -> np.ndarray:
    """Return -div(a grad u) h^2 (b, n, n) with u = 0 on the walls."""
    rows, columns = faces
    padded = np.pad(u, ((0, 0), (1, 1), (1, 1)))
    flux_rows = rows * (padded[:, 1:, 1:-1] - padded[:, :-1, 1:-1])
    flux_columns = columns * (padded[:, 1:-1, 1:] - padded[:, 1:-1, :-1])
    outflow: np.ndarray = flux_rows[:, :-1] - flux_rows[:, 1:] + flux_columns[:, :, :-1] - flux_columns[:, :, 1:]
    return outflow


def solve(a: np.ndarray, source: np.ndarray | float = 1.0) -> np.ndarray:
    """Return u (b, n, n), float64, with -div(a grad u) = source in every cell and u = 0 on the walls. May raise NoConvergence.

    The method is conjugate gradients, preconditioned by the operator of constant coefficient. The preconditioner is diagonal
    under the type-II sine transform, with the eigenvalues (2 - 2 cos(pi j/n) + 2 - 2 cos(pi k/n)) / h^2, j, k = 1..n. It is
    float32, since it need not be exact. Each sample stops by itself, so its bits do not depend on its batch.
    """
    source = np.broadcast_to(np.asarray(source, dtype=np.float64), a.shape)
    block = max(1, BLOCK_CELLS // a.shape[-1] ** 2)
    return np.concatenate([_solve_block(a[rows], source[rows]) for rows in _slices(len(a), block)])


def _slices(total: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, total, size)]


def _solve_block(a: np.ndarray, source: np.ndarray) -> np.ndarray:
    n = a.shape[-1]
    faces = face_coefficients(a)
    one = 2 - 2 * np.cos(np.pi * np.arange(1, n + 1) / n)
    inverse = (1 / (one[:, None] + one)).astype(np.float32)

    def precondition(r: np.ndarray) -> np.ndarray:
        modes = scipy.fft.dstn(r.astype(np.float32), type=2, axes=(-2, -1), norm="ortho")
        z: np.ndarray = scipy.fft.idstn(modes * inverse, type=2, axes=(-2, -1), norm="ortho").astype(np.float64)
        return z

    def dot(v: np.ndarray, w: np.ndarray) -> np.ndarray:
        product: np.ndarray = (v * w).sum((-2, -1), keepdims=True)
        return product

    right = source / n**2
    solution, active = np.zeros(a.shape), np.arange(len(a))
    u, r = np.zeros(a.shape), right.copy()
    limit = TOLERANCE**2 * dot(right, right)
    p = z = precondition(r)
    rho = dot(r, z)
    for _ in range(MAX_ITERATIONS):
        q = _apply(faces, p)
        step = rho / dot(p, q)
        u, r = u + step * p, r - step * q
        done = (dot(r, r) <= limit)[:, 0, 0]
        if done.any():
            solution[active[done]] = u[done]
            if done.all():
                return solution
            keep = ~done
            active, u, r, p, rho, limit = active[keep], u[keep], r[keep], p[keep], rho[keep], limit[keep]
            faces = (faces[0][keep], faces[1][keep])
        z = precondition(r)
        rho, before = dot(r, z), rho
        p = z + rho / before * p
    worst = float(np.sqrt((dot(r, r) / limit).max()) * TOLERANCE)
    raise NoConvergence(f"{len(active)} of {len(a)} systems after {MAX_ITERATIONS} iterations: relative residual {worst:.2g}")
