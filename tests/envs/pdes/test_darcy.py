"""Darcy flow: finite volumes, conjugate gradients, the coefficient's gradient, residual operators."""

import numpy as np
import pytest
import torch

from envs.pdes import darcy_solver, make_pde
from envs.pdes.darcy import HIGH, LOW, soft_threshold
from envs.rewards import physics_reward
from tiny_models import assert_symmetric, observed_order


def centres(n: int) -> tuple[np.ndarray, np.ndarray]:
    x = (np.arange(n) + 0.5) / n
    return np.meshgrid(x, x, indexing="ij")


def test_the_solver_is_of_second_order_for_a_smooth_coefficient():
    """u = sin(pi x) sin(pi y), a = 2 + sin(pi x) cos(pi y): -div(a grad u) = 2 pi^2 a u - grad a . grad u."""
    errors, sizes = [], (16, 32, 64, 128)
    for n in sizes:
        x, y = centres(n)
        u, a = np.sin(np.pi * x) * np.sin(np.pi * y), 2 + np.sin(np.pi * x) * np.cos(np.pi * y)
        a_x, a_y = np.pi * np.cos(np.pi * x) * np.cos(np.pi * y), -np.pi * np.sin(np.pi * x) * np.sin(np.pi * y)
        u_x, u_y = np.pi * np.cos(np.pi * x) * np.sin(np.pi * y), np.pi * np.sin(np.pi * x) * np.cos(np.pi * y)
        source = 2 * np.pi**2 * a * u - a_x * u_x - a_y * u_y
        errors.append(np.sqrt(np.mean((darcy_solver.solve(a[None], source[None])[0] - u) ** 2)))
    assert observed_order([1 / n for n in sizes], errors) == pytest.approx(2.0, abs=0.1)


def test_the_solver_agrees_with_a_dense_solve():
    a = np.where(np.random.default_rng(0).random((2, 8, 8)) > 0.5, HIGH, LOW)
    unit = np.eye(64).reshape(64, 8, 8)
    for one in a:
        faces = darcy_solver.face_coefficients(np.broadcast_to(one, (64, 8, 8)))
        matrix = darcy_solver._apply(faces, unit).reshape(64, 64).T * 64
        np.testing.assert_allclose(matrix, matrix.T, atol=1e-9)
        dense = np.linalg.solve(matrix, np.ones(64)).reshape(8, 8)
        np.testing.assert_allclose(darcy_solver.solve(one[None])[0], dense, rtol=1e-9)


def test_face_coefficients_are_resistances_in_series():
    """Two half cells of conductivity 3 and 12 in series: 1 / (1/6 + 1/24) = 4.8. At a wall half a cell alone: 2 a."""
    rows, columns = darcy_solver.face_coefficients(np.array([[[3.0, 12.0], [3.0, 3.0]]]))
    np.testing.assert_allclose(columns[0], [[6, 4.8, 24], [6, 3, 6]])
    np.testing.assert_allclose(rows[0], [[6, 24], [3, 4.8], [6, 6]])


def test_no_convergence_is_an_error(monkeypatch):
    monkeypatch.setattr(darcy_solver, "MAX_ITERATIONS", 2)
    with pytest.raises(darcy_solver.NoConvergence, match="3 of 3 systems after 2 iterations: relative residual"):
        darcy_solver.solve(np.where(np.random.default_rng(0).random((3, 16, 16)) > 0.5, HIGH, LOW))


def test_bits_do_not_depend_on_the_batch():
    pde = make_pde("Darcy-v0", 16)
    assert torch.equal(pde.solve(1, "test", [4, 9])[1], pde.solve(1, "test", range(12))[9])


def test_data_satisfy_the_scheme_and_have_the_public_statistics():
    """Public data at 128^2: u mean 5.69e-3, standard deviation 3.79e-3."""
    pde = make_pde("Darcy-v0", 128)
    fields = pde.solve(0, "statistics", range(200))
    assert float(fields[:, 1].mean()) == pytest.approx(5.69e-3, rel=0.05)
    assert float(fields[:, 1].std()) == pytest.approx(3.79e-3, rel=0.05)
    assert set(fields[:, 0].unique().tolist()) == {LOW, HIGH}
    assert float(pde.residual(fields[:8], "consistent").max()) < 1e-18
    assert float(pde.residual(fields[:8].float(), "consistent").mean()) < 1e-7


def test_nothing_flowing_beats_exact_data_under_the_paper_operator_only():
    pde = make_pde("Darcy-v0", 32)
    data = pde.solve(0, "test", range(16))
    still = data.clone()
    still[:, 1] = 0
    torch.testing.assert_close(pde.residual(still, "paper"), torch.ones(16, dtype=torch.float64))
    assert float(pde.residual(data, "paper").mean()) > 2.0
    torch.testing.assert_close(pde.residual(still, "consistent"), torch.ones(16, dtype=torch.float64))
    reward = physics_reward(pde, form="log", condition_weight=0.1)
    assert 50 * reward.terms[0].reference < 1.0
    assert float((reward(data).reward - reward(still).reward).min()) > 3.0


@pytest.mark.parametrize("n", [32, 64])
def test_sensitivity_to_white_noise(n):
    """Noise of 1e-3 model units moves a by .005, within a threshold's reach of nothing: only u's part is left, (1e-3/115)^2
    sum of squared stencil entries / h^4, computed from the face coefficients."""
    pde = make_pde("Darcy-v0", n)
    data = pde.solve(0, "test", range(16))
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    disturbed = pde.normalizer.to_physical(pde.normalizer.to_model(data) + 1e-3 * noise)
    rows, columns = darcy_solver.face_coefficients(data[:, 0].numpy())
    centre = rows[:, 1:] + rows[:, :-1] + columns[:, :, 1:] + columns[:, :, :-1]
    inner = (rows[:, 1:-1] ** 2).sum() * 2 + (columns[:, :, 1:-1] ** 2).sum() * 2
    expected = (1e-3 / 115) ** 2 * ((centre**2).sum() + inner) / centre.size * n**4
    assert float(pde.residual(disturbed, "consistent").mean()) == pytest.approx(expected, rel=0.03)


def test_every_grid_mode_of_u_is_seen():
    """The operator is the solver's, whose smallest eigenvalue is over 3 * 2 pi^2 * .9 = 53 at n = 8."""
    pde = make_pde("Darcy-v0", 8)
    data = pde.solve(0, "test", [0])
    index = np.arange(8) + 0.5
    for j in range(1, 9):
        for k in range(1, 9):
            mode = torch.from_numpy(np.outer(np.sin(np.pi * j * index / 8), np.sin(np.pi * k * index / 8)))
            disturbed = data.clone()
            disturbed[:, 1] += 1e-3 * mode
            assert float(pde.residual(disturbed, "consistent")) > 53**2 * float((1e-3 * mode).square().mean())


def test_the_threshold_is_exact_on_data_and_differentiable_between():
    a = torch.tensor([2.0, 3.0, 4.4, 7.5, 10.6, 12.0, 14.0], dtype=torch.float64, requires_grad=True)
    values = soft_threshold(a)
    torch.testing.assert_close(values.detach(), torch.tensor([3, 3, 3, 7.5, 12, 12, 12], dtype=torch.float64))
    values.sum().backward()
    # d/da of 9 (3 t^2 - 2 t^3) at t = 1/2: 9 * 1.5 / 6.
    torch.testing.assert_close(a.grad, torch.tensor([0, 0, 0, 2.25, 0, 0, 0], dtype=torch.float64))


def test_gradient_reaches_the_coefficient():
    pde = make_pde("Darcy-v0", 16)
    fields = pde.solve(0, "test", range(2))
    fields[:, 0, 5, 5] = 7.0
    fields[:, 1] *= 1.01
    fields.requires_grad_(True)
    pde.residual(fields, "consistent").sum().backward()
    gradient = fields.grad[:, 0]
    assert (gradient[:, 5, 5] != 0).all()
    assert int((gradient != 0).sum()) == 2


def test_two_valuedness():
    """One of 64 cells half-way: (0.2 * 4.5)^2 / 64. Noise on a counts, though the residual ignores it."""
    pde = make_pde("Darcy-v0", 8)
    fields = pde.solve(0, "test", range(2))
    assert float(pde.conditions["two_valued"](fields).max()) == 0.0
    fields[:, 0, 2, 2] = 7.5
    torch.testing.assert_close(pde.conditions["two_valued"](fields), torch.full((2,), 0.81 / 64, dtype=torch.float64))


def test_conservation_is_the_flux_through_the_walls():
    pde = make_pde("Darcy-v0", 16)
    data = pde.solve(0, "test", range(2))
    assert float(pde.conditions["conservation"](data).max()) < 1e-18
    data[:, 1] *= 1.5  # half as much again flows out of a source that stays
    torch.testing.assert_close(pde.conditions["conservation"](data), torch.full((2,), 0.25, dtype=torch.float64))


def test_symmetries_keep_residuals_and_conditions():
    pde = make_pde("Darcy-v0", 16)
    noise = torch.randn(16, *pde.shape, generator=torch.Generator().manual_seed(1))
    data = pde.solve(0, "test", range(16)) * (1 + 0.05 * noise)
    assert_symmetric(pde, data)


def test_the_galerkin_check_converges_to_smooth_solutions():
    """a = 3 everywhere and u = sin pi x sin pi y: the defect against its own source, 6 pi^2 u, is of second order."""
    defects, sizes = [], (16, 32, 64)
    for n in sizes:
        x, y = centres(n)
        u = np.sin(np.pi * x) * np.sin(np.pi * y)
        fields = torch.from_numpy(np.stack([np.full((n, n), LOW), u]))[None]
        source = torch.from_numpy(LOW * 2 * np.pi**2 * u)[1:-1, 1:-1]
        defect = make_pde("Darcy-v0", n).residual_map(fields, "galerkin")[0, 0] + 1 - source
        defects.append(float(defect.square().mean().sqrt()))
    assert observed_order([1 / n for n in sizes], defects) == pytest.approx(2.0, abs=0.1)


def test_resolving_thresholds_the_coefficient_half_way():
    pde = make_pde("Darcy-v0", 16)
    data = pde.solve(0, "test", range(3))
    blurred = data.clone()
    blurred[:, 0] += 0.9 * torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-4, 4)
    torch.testing.assert_close(pde.resolve(blurred)[:, 1], data[:, 1], rtol=1e-8, atol=1e-12)
    scaled = data.clone()
    scaled[:, 1] *= 0.8
    torch.testing.assert_close(pde.resolve_error(scaled), torch.full((3,), 0.2, dtype=torch.float64))
    assert (pde.trivial_resolve_error(data) > 0.1).all()
