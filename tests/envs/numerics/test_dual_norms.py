"""The H^-1 norm of elliptic residuals: against eigenfunctions, against the re-solved solution, by its weight of the scales."""

import numpy as np
import pytest
import torch

from envs.numerics.dual_norms import cell_sine_modes, dual_square, interior_sine_modes
from envs.numerics.operators import five_point_laplacian
from envs.pdes import make_pde
from envs.pdes.darcy import LOW

N = 16


def interior_mode(j: int, k: int, points: int = N) -> tuple[torch.Tensor, float]:
    """sin(pi j x) sin(pi k y) on the vertices (1, 1, n, n), and its eigenvalue under minus the 5-point Laplacian."""
    h = 1 / (points - 1)
    x = np.arange(points) * h
    mode = torch.from_numpy(np.outer(np.sin(np.pi * j * x), np.sin(np.pi * k * x)))[None, None]
    return mode, (4 - 2 * np.cos(np.pi * j * h) - 2 * np.cos(np.pi * k * h)) / h**2


@pytest.mark.parametrize(("j", "k"), [(1, 1), (3, 5), (N - 2, N - 2)])
@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_an_eigenfunction_has_its_mean_square_over_its_eigenvalue(j: int, k: int, shift: float) -> None:
    mode, eigenvalue = interior_mode(j, k)
    inner = mode[..., 1:-1, 1:-1]
    expected = inner.square().mean() / (eigenvalue - shift)
    assert dual_square(inner, 1 / (N - 1), "vertex", shift).item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("modes", [interior_sine_modes, cell_sine_modes])
def test_the_transforms_are_orthonormal(modes) -> None:
    transform, _ = modes(N)
    np.testing.assert_allclose(transform @ transform.T, np.eye(N), atol=1e-13)


def test_the_cell_modes_are_those_of_the_half_cell_walls() -> None:
    """Second differences on cells whose walls lie half a cell outside: the wall's face has the coefficient 2."""
    matrix = 2 * np.eye(N) - np.eye(N, k=1) - np.eye(N, k=-1)
    matrix[0, 0] = matrix[-1, -1] = 3
    transform, eigenvalues = cell_sine_modes(N)
    np.testing.assert_allclose(transform @ matrix @ transform.T, np.diag(eigenvalues), atol=1e-13)


@pytest.mark.parametrize("name", ["Poisson-v0", "Helmholtz-v0"])
def test_weak_is_the_energy_of_the_solutions_error(name: str) -> None:
    """R = (lap + shift) e with e = v - the re-solved v: <R, -(lap + shift)^-1 R> = -<e, (lap + shift) e>, mean over the vertices."""
    pde = make_pde(name, N)
    fields = pde.solve(0, "test", range(4))
    fields[:, 1, 1:-1, 1:-1] += 1e-3 * torch.randn(
        4, N - 2, N - 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    error = fields[:, 1] - pde.resolve(fields)[:, 1]
    inner = error[:, 1:-1, 1:-1]
    energy = -inner * (five_point_laplacian(error, pde.grid.spacing) + pde.shift * inner)
    torch.testing.assert_close(pde.conditions["weak"](fields), energy.flatten(1).mean(1))


def test_weak_of_darcy_with_a_constant_coefficient() -> None:
    """a = 3 everywhere, u off by one eigenfunction of the cells with eigenvalue mu: R = 3 mu e, ||R||^2 = 9 mu mean(e^2)."""
    pde = make_pde("Darcy-v0", N)
    transform, one = cell_sine_modes(N)
    e = torch.from_numpy(np.outer(transform[1], transform[2]))
    fields = torch.stack([torch.full((N, N), LOW, dtype=torch.float64), torch.zeros(N, N, dtype=torch.float64)])[None]
    fields = pde.resolve(fields)
    fields[:, 1] += 1e-3 * e
    eigenvalue = (one[1] + one[2]) * N**2
    expected = 9 * eigenvalue * (1e-6 * e.square().mean()).item()
    assert pde.conditions["weak"](fields).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", ["Poisson-v0", "Helmholtz-v0", "Darcy-v0"])
def test_weak_sees_the_large_scales_that_the_residual_does_not(name: str) -> None:
    """A solution 1% too large against white noise of the same L2 error: the weak norm ranks them far closer than the residual."""
    pde = make_pde(name, 32)
    data = pde.solve(0, "test", range(4))
    large, noisy = data.clone(), data.clone()
    large[:, 1] *= 1.01
    rms = (0.01 * data[:, 1]).square().mean((-2, -1), keepdim=True).sqrt()
    noise = rms * torch.randn(data[:, 1].shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noisy[:, 1] += noise

    def share(measure) -> float:
        return (measure(large) / measure(noisy)).mean().item()

    assert share(pde.conditions["weak"]) > 10 * share(lambda x: pde.residual(x, "consistent"))
