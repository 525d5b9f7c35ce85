"""Gaussian random fields: their spectrum, their mean, and the same field at every resolution."""

import math

import numpy as np
import scipy.fft

from envs.numerics.random_fields import neumann_field


def test_a_sample_is_the_same_field_at_every_resolution():
    coarse, fine = (neumann_field(3, "test", [5, 6], n) for n in (32, 64))
    averaged = fine.reshape(2, 32, 2, 32, 2).mean((2, 4))
    assert np.abs(averaged - coarse).std() < 0.05 * coarse.std()
    assert np.abs(neumann_field(3, "test", [7], 32) - coarse[:1]).std() > 0.5 * coarse.std()


def test_every_mode_has_the_stated_variance() -> None:
    """DCT-II coefficients have the variance (n tau (pi^2 |k|^2 + tau^2)^-1)^2, tau 3. k = 0 is removed."""
    points, count = 8, 2000
    modes = scipy.fft.dctn(neumann_field(0, "law", range(count), points), axes=(-2, -1), norm="ortho")
    k = np.arange(points)
    amplitude = points * 3 / (np.pi**2 * (k[:, None] ** 2 + k**2) + 9)
    amplitude[0, 0] = 0
    # a mean of squares of normals has the relative standard error sqrt(2/count) = .032; 5 of them
    np.testing.assert_allclose((modes**2).mean(0), amplitude**2, rtol=5 * math.sqrt(2 / count), atol=1e-25)
