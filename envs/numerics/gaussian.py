"""Gaussian laws of fields whose covariance is diagonal in a separable orthonormal basis, such as the cosine basis.

    x ~ N(mu, C):   D(x; s) = mu + C (C + s^2)^-1 (x - mu),   S(s) = s^2 C (C + s^2)^-1

D is the exact denoiser of the law and S the covariance of x_0 given the noised state. Both are diagonal in the basis of C.
"""

from dataclasses import dataclass

import numpy as np
import scipy.fft
import torch


@dataclass(frozen=True, kw_only=True, eq=False)
class Basis:
    """Separable orthonormal basis: modes (..., h, w) = rows @ x @ columns^T."""

    rows: torch.Tensor
    """Orthogonal matrix (h, h); row k is the k-th basis function of the rows."""
    columns: torch.Tensor
    """Orthogonal matrix (w, w)."""

    def to_modes(self, x: torch.Tensor) -> torch.Tensor:
        """Return the coefficients (..., h, w) of fields x (..., h, w)."""
        return _along(_along(x, self.columns).mT, self.rows).mT

    def to_fields(self, modes: torch.Tensor) -> torch.Tensor:
        """Return the fields (..., h, w) of coefficients (..., h, w)."""
        return _along(_along(modes, self.columns.mT).mT, self.rows.mT).mT


def _along(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Return the matrix (w, w) applied to each row of x (..., h, w), as one product: small batched products are slow."""
    return (x.reshape(-1, x.shape[-1]) @ matrix.to(x).mT).reshape(x.shape)


def cosine_basis(rows: int, columns: int) -> Basis:
    """Return the orthonormal DCT-II basis of an (h, w) grid, float64."""
    matrices = [torch.from_numpy(scipy.fft.dct(np.eye(n), type=2, norm="ortho", axis=0)) for n in (rows, columns)]
    return Basis(rows=matrices[0], columns=matrices[1])


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianLaw:
    """Law N(mean, C) of fields (c, h, w); C is diagonal in the basis."""

    mean: torch.Tensor
    """Mean (c, h, w)."""
    variance: torch.Tensor
    """Variance (c, h, w) of each mode."""
    basis: Basis

    def __post_init__(self) -> None:
        if self.mean.shape != self.variance.shape or self.mean.ndim != 3:
            raise ValueError(f"mean and variance must both be (c, h, w), got {self.mean.shape} and {self.variance.shape}")
        grid = (len(self.basis.rows), len(self.basis.columns))
        if tuple(self.mean.shape[1:]) != grid:
            raise ValueError(f"the basis must be of {tuple(self.mean.shape[1:])} grids, got {grid}")
        if not (self.variance >= 0).all():
            raise ValueError(f"the variance of a mode must not be negative, got {self.variance.min():g}")

    def denoised(self, x: torch.Tensor, sigma: float | torch.Tensor) -> torch.Tensor:
        """Return D(x; sigma) (b, c, h, w) of states x (b, c, h, w). ``sigma``: a number, or (b, 1, 1, 1)."""
        mean, variance = self.mean.to(x), self.variance.to(x)
        return mean + self.basis.to_fields(self.basis.to_modes(x - mean) * (variance / (variance + sigma**2)))

    def denoised_variance(self, sigma: float) -> torch.Tensor:
        """Return the variance S(sigma) (c, h, w) of each mode of x_0 given a state at sigma."""
        return sigma**2 * self.variance / (self.variance + sigma**2)

    def draw(self, noise: torch.Tensor, sigma: float = 0.0) -> torch.Tensor:
        """Return mean + (C + sigma^2)^(1/2) noise from standard normal noise (b, c, h, w)."""
        return self.mean.to(noise) + self.basis.to_fields(noise * (self.variance + sigma**2).sqrt().to(noise))
