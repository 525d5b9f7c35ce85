"""Poisson and Helmholtz: sine-transform solver, residual operators, walls."""

import numpy as np
import pytest
import scipy.fft
import torch

from envs.pdes import make_pde
from envs.pdes.elliptic import edge_mean_square, sine_solve
from envs.rewards import physics_reward
from tiny_models import assert_symmetric, observed_order

NAMES = ("Poisson-v0", "Helmholtz-v0")
SHIFT = {"Poisson-v0": 0.0, "Helmholtz-v0": 1.0}


def manufactured(n: int, shift: float) -> tuple[np.ndarray, np.ndarray]:
    """v = sin(pi x) sin(2 pi y) + x(1-x) y(1-y) e^x and its source lap v + shift v, exact on the vertices (n, n)."""
    x, y = np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, n), indexing="ij")
    wave = np.sin(np.pi * x) * np.sin(2 * np.pi * y)
    bubble = x * (1 - x) * y * (1 - y) * np.exp(x)
    # (x - x^2) e^x has the second derivative (-x^2 - 3x) e^x.
    lap = -5 * np.pi**2 * wave + (-(x**2) - 3 * x) * np.exp(x) * y * (1 - y) - 2 * x * (1 - x) * np.exp(x)
    v = wave + bubble
    return v, lap + shift * v


@pytest.mark.parametrize("name", NAMES)
def test_the_solver_is_of_second_order(name):
    errors = []
    for n in (16, 32, 64, 128):
        v, f = manufactured(n, SHIFT[name])
        errors.append(np.sqrt(np.mean((sine_solve(f[None], SHIFT[name])[0] - v) ** 2)))
    assert observed_order([1 / (n - 1) for n in (16, 32, 64, 128)], errors) == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_orders_of_the_residuals_on_an_exact_solution(name):
    """The truncation error is h^2 (consistent) and h^4 (compact): the unrewarded check is another discretization."""
    spacings, found = [1 / 31, 1 / 63, 1 / 127], {"consistent": [], "compact": []}
    for n in (32, 64, 128):
        pde = make_pde(name, n)
        fields = torch.from_numpy(np.stack(manufactured(n, SHIFT[name])[::-1]))[None]
        for operator, norms in found.items():
            norms.append(float(pde.residual(fields, operator).sqrt()))
    assert observed_order(spacings, found["consistent"]) == pytest.approx(2.0, abs=0.1)
    assert observed_order(spacings, found["compact"]) == pytest.approx(4.0, abs=0.2)


@pytest.mark.parametrize("name", NAMES)
def test_solver_data_satisfy_the_scheme_and_the_wall(name):
    pde = make_pde(name, 64)
    fields = pde.solve(0, "test", range(8))
    assert float(pde.residual(fields, "consistent").max()) < 1e-24
    assert float(pde.conditions["wall"](fields).max()) == 0.0
    # float32 rounding of v (relative 6e-8) through 20/h^4: 20 * 63^4 * (4e-3 * 3e-8)^2 = 5e-12.
    assert float(pde.residual(fields.float(), "consistent").mean()) < 2e-11


@pytest.mark.parametrize(
    ("name", "source", "solution", "floor"), [("Poisson-v0", 0.2919, 4.17e-3, 1.19), ("Helmholtz-v0", 0.2845, 4.28e-3, 1.05)]
)
def test_statistics_and_floors_of_the_public_data(name, source, solution, floor):
    """The public data's standard deviations and the measured floor of the paper's operator, 128^2."""
    fields = make_pde(name, 128).solve(0, "statistics", range(400))
    assert float(fields[:, 0].std()) == pytest.approx(source, rel=0.05)
    assert float(fields[:, 1].std()) == pytest.approx(solution, rel=0.05)
    assert float(make_pde(name, 128).residual(fields, "paper").mean()) == pytest.approx(floor, rel=0.08)


def neumann_solution(f: np.ndarray, shift: float) -> np.ndarray:
    """The zero of the paper's operator: its replicate padding is diagonal under DCT-II, eigenvalues 2 cos(pi k/n) - 2."""
    n = f.shape[-1]
    one = (2 * np.cos(np.pi * np.arange(n) / n) - 2) * (n - 1) ** 2
    symbol = one[:, None] + one + shift
    symbol[0, 0] = symbol[0, 0] or 1.0
    return scipy.fft.idctn(scipy.fft.dctn(f, axes=(-2, -1), norm="ortho") / symbol, axes=(-2, -1), norm="ortho")


@pytest.mark.parametrize("name", NAMES)
def test_the_neumann_solution_fools_the_paper_operator_only(name):
    pde = make_pde(name, 32)
    data = pde.solve(0, "test", range(4))
    f = data[:, 0].numpy() - (data[:, 0].mean((-2, -1), keepdim=True).numpy() if name == "Poisson-v0" else 0)
    fields = torch.from_numpy(np.stack([f, neumann_solution(f, SHIFT[name])], axis=1))
    assert float(pde.residual(fields, "paper").max()) < 1e-23 < 0.05 < float(pde.residual(data, "paper").min())
    reward = physics_reward(pde, form="log", condition_weight=1.0)
    wall = next(term for term in reward.terms if term.name == "wall")
    assert float(pde.conditions["wall"](fields).min()) > 1000 * wall.reference
    assert float((reward(data).reward - reward(fields).reward).min()) > 5.0


@pytest.mark.parametrize("name", NAMES)
def test_a_zero_solution_under_a_source_is_refused(name):
    pde = make_pde(name, 32)
    data = pde.solve(0, "test", range(16))
    empty = data.clone()
    empty[:, 1] = 0
    residual = pde.residual(empty, "consistent")
    torch.testing.assert_close(residual, data[:, 0, 1:-1, 1:-1].square().mean((1, 2)))  # nothing but the source is left
    reward = physics_reward(pde, form="log", condition_weight=0.1)
    assert float(residual.mean()) > 50 * reward.terms[0].reference
    assert float((reward(data).reward - reward(empty).reward).min()) > 2.0


@pytest.mark.parametrize("name", NAMES)
def test_every_grid_mode_is_seen(name):
    """Each sine mode of v raises the residual by at least the square of the smallest eigenvalue, 2 pi^2 - 1 > 18."""
    pde = make_pde(name, 16)
    n, data = pde.resolution, pde.solve(0, "test", [0])
    index = np.arange(n)
    basis = np.sin(np.pi * np.outer(np.arange(1, n - 1), index) / (n - 1))
    for j in range(n - 2):
        for k in range(n - 2):
            mode = torch.from_numpy(np.outer(basis[j], basis[k]))
            disturbed = data.clone()
            disturbed[:, 1] += 1e-3 * mode
            size = float((1e-3 * mode[1:-1, 1:-1]).square().mean())
            assert float(pde.residual(disturbed, "consistent")) > 18**2 * size


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("n", [32, 128])
def test_sensitivity_to_white_noise(name, n):
    """Noise of 1e-3 in model units: (1e-3/s_v)^2 20 (n-1)^4 + (1e-3/s_f)^2 on the consistent operator (v's own shift is small)."""
    pde = make_pde(name, n)
    data = pde.solve(0, "test", range(16))
    noise = torch.randn(data.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    disturbed = pde.normalizer.to_physical(pde.normalizer.to_model(data) + 1e-3 * noise)
    expected = (1e-3 / pde.solution_scale) ** 2 * 20 * (n - 1) ** 4 + (1e-3 / pde.source_scale) ** 2
    assert float(pde.residual(disturbed, "consistent").mean()) == pytest.approx(expected, rel=0.03)


@pytest.mark.parametrize("name", NAMES)
def test_resolving(name):
    pde = make_pde(name, 32)
    data = pde.solve(0, "test", range(4))
    assert float(pde.resolve_error(data.float()).max()) < 1e-6
    scaled = data.clone()
    scaled[:, 1] *= 1.25
    torch.testing.assert_close(pde.resolve_error(scaled), torch.full((4,), 0.25, dtype=torch.float64))
    torch.testing.assert_close(pde.trivial_resolve_error(data), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("name", NAMES)
def test_symmetries_keep_the_residual_and_the_walls(name):
    pde = make_pde(name, 16)
    data = pde.solve(0, "test", range(16)) + 0.01 * torch.randn(16, *pde.shape, generator=torch.Generator().manual_seed(1))
    assert_symmetric(pde, data)


def test_samples_do_not_depend_on_their_batch():
    pde = make_pde("Helmholtz-v0", 16)
    assert torch.equal(pde.solve(1, "test", [4, 9])[1], pde.solve(1, "test", range(12))[9])


def test_edge_mean_square_counts_each_wall_vertex_once():
    u = torch.zeros(1, 8, 8)
    u[0, 0, 0] = u[0, 3, 7] = 2.0
    assert float(edge_mean_square(u)) == pytest.approx(2 * 4 / 28)
    u[0, 1:-1, 1:-1] = 100.0
    assert float(edge_mean_square(u)) == pytest.approx(2 * 4 / 28)


def test_the_helmholtz_source_vanishes_on_the_wall_and_poissons_does_not():
    helmholtz, poisson = (make_pde(name, 16).solve(0, "test", range(4)) for name in ("Helmholtz-v0", "Poisson-v0"))
    pde = make_pde("Helmholtz-v0", 16)
    assert float(pde.conditions["source_edge"](helmholtz).max()) == 0.0
    assert float(pde.conditions["source_edge"](poisson).min()) > 1e-3
