"""Gaussian laws in a separable basis: their denoiser, its covariance and their draws, against dense matrices."""

import pytest
import torch

from envs.numerics.gaussian import Basis, GaussianLaw, cosine_basis

SHAPE = (2, 3, 4)
LAW = GaussianLaw(
    mean=torch.linspace(-1, 1, 24, dtype=torch.float64).reshape(SHAPE),
    variance=torch.logspace(-2, 1, 24, dtype=torch.float64).reshape(SHAPE),
    basis=cosine_basis(3, 4),
)


def fields(count: int) -> torch.Tensor:
    return torch.randn(count, *SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def dense(law: GaussianLaw) -> torch.Tensor:
    """Covariance (24, 24) of the flattened fields. Row i of the modes of unit fields is column i of the transform."""
    transform = law.basis.to_modes(torch.eye(24, dtype=torch.float64).reshape(24, *SHAPE)).reshape(24, 24)
    return transform @ torch.diag(law.variance.flatten()) @ transform.T


def test_the_cosine_basis_is_orthonormal_and_its_first_mode_is_constant() -> None:
    basis = cosine_basis(3, 4)
    for matrix in (basis.rows, basis.columns):
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix), dtype=torch.float64))
    x = fields(5)
    torch.testing.assert_close(basis.to_fields(basis.to_modes(x)), x)
    modes = basis.to_modes(torch.full(SHAPE, 2.0, dtype=torch.float64))
    assert modes[:, 0, 0].tolist() == pytest.approx([2 * 12**0.5] * 2)
    torch.testing.assert_close(modes.square().sum(), torch.tensor(4.0 * 24, dtype=torch.float64))


def test_another_basis_is_applied_to_rows_and_columns() -> None:
    rows, columns = (torch.linalg.qr(fields(1)[0, 0, :n, :n])[0] for n in (2, 3))
    x = fields(1)[0, :, :2, :3]
    expected = torch.einsum("ij,cjk,lk->cil", rows, x, columns)
    torch.testing.assert_close(Basis(rows=rows, columns=columns).to_modes(x), expected)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_the_denoiser_is_the_posterior_mean_and_its_covariance_the_posterior_covariance(sigma: float) -> None:
    """x = x_0 + sigma n: E[x_0 | x] = mu + C (C + s^2)^-1 (x - mu), Cov = C - C (C + s^2)^-1 C, by dense solves."""
    covariance, x = dense(LAW), LAW.mean + sigma * fields(3)
    gain = torch.linalg.solve(covariance + sigma**2 * torch.eye(24, dtype=torch.float64), covariance).T
    expected = LAW.mean.flatten() + (x - LAW.mean).flatten(1) @ gain.T
    torch.testing.assert_close(LAW.denoised(x, sigma).flatten(1), expected)
    posterior = GaussianLaw(mean=LAW.mean, variance=LAW.denoised_variance(sigma), basis=LAW.basis)
    torch.testing.assert_close(dense(posterior), covariance - gain @ covariance, rtol=1e-7, atol=1e-9)


def test_each_sample_may_have_its_own_sigma() -> None:
    x, sigmas = fields(2), [0.3, 4.0]
    together = LAW.denoised(x, torch.tensor(sigmas, dtype=torch.float64).reshape(2, 1, 1, 1))
    for i, sigma in enumerate(sigmas):
        torch.testing.assert_close(together[i], LAW.denoised(x[i : i + 1], sigma)[0])


@pytest.mark.parametrize("sigma", [0.0, 2.0])
def test_draws_have_mean_and_covariance_of_the_noised_law(sigma: float) -> None:
    """A draw is affine in the noise: the images of the unit noises give the covariance without sampling."""
    units = torch.eye(24, dtype=torch.float64).reshape(24, *SHAPE)
    torch.testing.assert_close(LAW.draw(0 * units, sigma)[0], LAW.mean)
    root = (LAW.draw(units, sigma) - LAW.mean).flatten(1)
    torch.testing.assert_close(root.T @ root, dense(LAW) + sigma**2 * torch.eye(24, dtype=torch.float64))


def test_fields_keep_their_type() -> None:
    x = fields(2).float()
    assert LAW.denoised(x, 0.5).dtype == LAW.draw(x).dtype == LAW.basis.to_modes(x).dtype == torch.float32


def test_a_mode_without_variance_is_its_mean() -> None:
    law = GaussianLaw(mean=LAW.mean, variance=torch.zeros_like(LAW.variance), basis=LAW.basis)
    torch.testing.assert_close(law.denoised(fields(1), 0.5)[0], LAW.mean)
    torch.testing.assert_close(law.draw(fields(1))[0], LAW.mean)


def test_wrong_shapes_and_negative_variances_are_refused() -> None:
    with pytest.raises(ValueError, match=r"mean and variance must both be \(c, h, w\), got .*\[2, 3, 4\].* and .*\[3, 4\]"):
        GaussianLaw(mean=LAW.mean, variance=LAW.variance[0], basis=LAW.basis)
    with pytest.raises(ValueError, match="variance of a mode must not be negative, got -1"):
        GaussianLaw(mean=LAW.mean, variance=LAW.variance - 1.01, basis=LAW.basis)
    with pytest.raises(ValueError, match=r"the basis must be of \(3, 4\) grids, got \(4, 3\)"):
        GaussianLaw(mean=LAW.mean, variance=LAW.variance, basis=cosine_basis(4, 3))
