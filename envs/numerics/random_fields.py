"""Gaussian random fields on the unit square, with the spectrum of Huang et al. 2024 (arXiv 2406.17763)."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import scipy.fft

from envs.numerics import seeding


@lru_cache(maxsize=8)
def _nested_order(points: int) -> np.ndarray:
    """Return the permutation that assigns a stream of n^2 normals to the modes (k1, k2) in shells of max(k1, k2).

    The first m^2 normals belong to the modes below m, so a sample id names the same field at every resolution.
    """
    k1, k2 = np.meshgrid(np.arange(points), np.arange(points), indexing="ij")
    shell = np.maximum(k1, k2)
    position = np.where(k1 == shell, k2, 2 * shell - k1)
    return (shell**2 + position).ravel()


def neumann_field(
    seed: int, stream: str, sample_ids: Sequence[int], points: int, *, alpha: float = 2.0, tau: float = 3.0
) -> np.ndarray:
    """Return random fields (b, n, n), float64, with zero mean and zero slope on the walls.

    The field is the orthonormal inverse DCT-II of n tau^(alpha-1) (pi^2 |k|^2 + tau^2)^(-alpha/2) xi, k != 0, where xi is
    standard normal.
    """
    modes = np.arange(points)
    k_squared = modes[:, None] ** 2 + modes**2
    amplitude = points * tau ** (alpha - 1) * (np.pi**2 * k_squared + tau**2) ** (-alpha / 2)
    amplitude[0, 0] = 0.0
    xi = seeding.normal(seed, stream, sample_ids, (points**2,)).numpy()[:, _nested_order(points)]
    fields: np.ndarray = scipy.fft.idctn(amplitude * xi.reshape(-1, points, points), axes=(-2, -1), norm="ortho")
    return fields
