"""Burgers: solver, initial law, symmetries, residual operators and what they can and cannot see."""

import math

import numpy as np
import pytest
import torch

from envs.pdes import make_pde
from envs.pdes.burgers import (
    EXTENT,
    FINAL_TIME,
    IC_MODES,
    MODEL_SCALE,
    VISCOSITY,
    advance,
    initial_condition,
    mode_amplitudes,
    solve_from,
)
from fields import grid_modes, noise_like
from tiny_models import observed_order

OPERATORS = ("consistent", "simpson", "paper")


@pytest.fixture(scope="module")
def exact():
    """Solver data by resolution, solved once."""
    counts = {8: 3, 16: 4, 32: 128, 64: 32, 128: 8}
    return {n: make_pde("Burgers-v0", n).solve(0, "test", range(count)) for n, count in counts.items()}


# --- the solver ---


def cole_hopf(t, points, a=1.2):
    """u = -2 nu phi_x / phi, phi = a + e^{-nu (2 pi)^2 t} cos 2 pi x solves the heat equation."""
    x = torch.arange(points, dtype=torch.float64) / points
    decay = math.exp(-VISCOSITY * (2 * math.pi) ** 2 * t)
    return 4 * math.pi * VISCOSITY * decay * torch.sin(2 * math.pi * x) / (a + decay * torch.cos(2 * math.pi * x))


def test_flow_map_has_order_4_towards_the_cole_hopf_solution():
    points, steps = 128, np.array([2, 4, 8, 16])
    start, truth = torch.fft.rfft(cole_hopf(0, points)), cole_hopf(1, points)
    errors = [(torch.fft.irfft(advance(start, points, 1.0, int(s)), n=points) - truth).abs().max().item() for s in steps]
    assert observed_order(1 / steps, errors) == pytest.approx(4, abs=0.4)


def test_solver_reproduces_the_cole_hopf_solution_at_every_row():
    rows = torch.stack([cole_hopf(i / 31, 256)[::8] for i in range(32)])
    solved = solve_from(cole_hopf(0, 256)[None], 32, 32)[0]
    assert solved.shape == (32, 32)
    torch.testing.assert_close(solved, rows, rtol=0, atol=1e-9)


@pytest.mark.parametrize("resolution", [8, 16, 32, 64])
def test_solver_commutes_with_translation_and_reflection(resolution):
    initial = initial_condition(3, "symmetry", range(2), 256)
    solved = solve_from(initial, resolution, resolution)
    stride = 256 // resolution
    shifted = solve_from(torch.roll(initial, 3 * stride, dims=-1), resolution, resolution)
    mirrored = solve_from(-torch.roll(initial.flip(-1), 1, dims=-1), resolution, resolution)
    torch.testing.assert_close(shifted, torch.roll(solved, 3, dims=-1), rtol=0, atol=1e-11)
    torch.testing.assert_close(mirrored, -torch.roll(solved.flip(-1), 1, dims=-1), rtol=0, atol=1e-11)


def test_solution_keeps_the_mean_and_loses_energy(exact):
    u = exact[64]
    torch.testing.assert_close(u.mean(-1), torch.zeros_like(u.mean(-1)), rtol=0, atol=1e-2)  # aliased modes at k = 64 only
    assert (u.square().mean(-1).diff(dim=-1) < 0).all()


# --- the law of the initial condition ---


def test_initial_amplitudes_match_their_formula_and_total_variance():
    # l_1 = sqrt(2) 49 (39.478418 + 49)^(-5/4): ln 88.478418 = 4.482759, e^(-5.603449) = 3.685114e-3, times 69.296465.
    amplitudes = mode_amplitudes()
    assert amplitudes.shape == (IC_MODES,)
    assert amplitudes[0] == pytest.approx(0.2553653, rel=1e-5)
    # each k adds l_k^2 (cos^2 + sin^2) to the variance: std .27410 (public data .2737)
    assert math.sqrt((amplitudes**2).sum()) == pytest.approx(0.2737, abs=1e-3)


def test_initial_condition_has_the_stated_variance_in_every_mode():
    count = 1500
    spectrum = torch.fft.rfft(initial_condition(1, "law", range(count), 256)).abs().square()[:, 1 : IC_MODES + 1]
    # |rfft_k|^2 = (points/2)^2 l_k^2 chi^2_2, relative standard error of the mean 1/sqrt(count): 5 of them are allowed
    ratio = (spectrum.mean(0) / 128**2 / 2).numpy() / mode_amplitudes() ** 2
    assert np.abs(ratio - 1).max() < 5 / math.sqrt(count)


def test_data_have_the_standard_deviations_of_the_public_data():
    u = make_pde("Burgers-v0", 32).solve(5, "law", range(512))
    # public .2737/.2009, re-creation .2735/.2015; the standard error of a std over 512 samples is about 1.6%
    assert u[:, :, 0].std().item() == pytest.approx(0.2735, rel=0.05)
    assert u.std().item() == pytest.approx(0.2015, rel=0.05)


@pytest.mark.parametrize("resolution", [8, 32, 128])
def test_initial_law_counts_aliased_modes(resolution):
    pde = make_pde("Burgers-v0", resolution)
    variance, freedom = pde.initial_law()
    rows = initial_condition(2, "alias", range(2000), 256)[:, :: 256 // resolution]
    power = (torch.fft.rfft(rows).abs() * torch.as_tensor(freedom / resolution)).square().mean(0).numpy()
    # a mode with d degrees of freedom has E (d |rfft| / n)^2 = d variance
    np.testing.assert_allclose(power, freedom * variance, rtol=0.16, atol=1e-25)  # 5 sqrt(2/2000) = .16


# --- residual operators ---


def floor(exact, resolution, operator):
    return make_pde("Burgers-v0", resolution).residual(exact[resolution], operator).mean().item()


@pytest.mark.parametrize(("resolution", "limit"), [(32, 5e-5), (64, 1e-6), (128, 1e-9)])
def test_consistent_operator_vanishes_on_exact_data(exact, resolution, limit):
    assert 0 <= floor(exact, resolution, "consistent") < limit


@pytest.mark.parametrize(("resolution", "limit"), [(32, 1e-3), (64, 1e-5), (128, 1e-5)])
def test_simpson_operator_is_small_on_exact_data(exact, resolution, limit):
    assert floor(exact, resolution, "simpson") < limit


def test_paper_operator_has_the_floor_of_the_literature():
    pde = make_pde("Burgers-v0", 128)
    residuals = torch.cat([pde.residual(pde.solve(0, "floor", range(i, i + 64)), "paper") for i in range(0, 512, 64)])
    # .0106 to .0112 (measured twice) over thousands of samples; the tail is heavy, so three standard errors are allowed
    error = residuals.std().item() / len(residuals) ** 0.5
    assert error < 0.0013
    assert residuals.mean().item() == pytest.approx(0.0109, abs=3 * error)


def test_paper_operator_is_composed_of_central_differences_with_replicated_edges():
    n = 16
    pde, x = make_pde("Burgers-v0", n), torch.arange(n, dtype=torch.float64) / n
    # central difference of sin 2 pi x: S cos 2 pi x with S = n sin(2 pi / n); composed twice: -S^2 sin 2 pi x
    slope, sine, cosine = n * math.sin(2 * math.pi / n), torch.sin(2 * math.pi * x), torch.cos(2 * math.pi * x)
    steady = pde.residual_map(sine.expand(1, 1, n, n), "paper")[..., 2:-2]
    expected = (slope * sine * cosine + VISCOSITY * slope**2 * sine)[2:-2]
    torch.testing.assert_close(steady, expected.expand_as(steady), rtol=0, atol=1e-12)
    # u = row index: u_t = 1/dt = n with the reference's dt = 1/n, half of it in the first and last row
    ramp = torch.arange(n, dtype=torch.float64)[:, None].expand(1, 1, n, n)
    assert pde.residual_map(ramp, "paper")[0, 0, :, 5].tolist() == [n / 2] + [n] * (n - 2) + [n / 2]


@pytest.mark.parametrize(("resolution", "value"), [(32, 0.0026), (64, 0.0099)])
def test_white_noise_of_a_thousandth_raises_the_consistent_residual_as_documented(exact, resolution, value):
    u = exact[resolution]
    noisy = u + 1e-3 * MODEL_SCALE * noise_like(u)
    residual = make_pde("Burgers-v0", resolution).residual(noisy, "consistent").mean().item()
    assert residual == pytest.approx(value, rel=0.15)


@pytest.mark.parametrize("amplitude", [0.01, -0.01])
def test_consistent_residual_sees_every_mode_of_the_grid(exact, amplitude):
    n = 32
    pde, u = make_pde("Burgers-v0", n), exact[n][:1]
    modes, names = grid_modes(n)
    gram = modes.flatten(1) @ modes.flatten(1).T / n**2
    torch.testing.assert_close(gram, torch.eye(n * n, dtype=torch.float64), rtol=0, atol=1e-10)
    base = pde.residual(u, "consistent").item()
    residual = torch.cat([pde.residual(u + amplitude * part[:, None], "consistent") for part in modes.split(256)])
    unseen = [f"{name}: {r:.1e}" for name, r in zip(names, residual.tolist(), strict=True) if r < 10 * base]
    assert not unseen, f"floor {base:.1e}, unseen modes {unseen}"


def test_consistent_residual_sees_a_change_at_every_grid_point(exact):
    n = 32
    pde, u = make_pde("Burgers-v0", n), exact[n][:1]
    bumps = torch.eye(n * n, dtype=torch.float64).reshape(n * n, 1, n, n)
    residual = torch.cat([pde.residual(u + 0.01 * part, "consistent") for part in bumps.split(256)])
    # least where the bump is in row 0 and spreads at once: 5 times the floor
    assert residual.min() > 3 * pde.residual(u, "consistent").item()


@pytest.mark.parametrize("row", [0, 1, -2, -1])
def test_consistent_residual_sees_noise_in_a_single_row(exact, row):
    pde, u = make_pde("Burgers-v0", 64), exact[64][:4]
    changed = u.clone()
    changed[:, :, row] += 0.01 * noise_like(u)[:, :, row]
    assert (pde.residual(changed, "consistent") > 1e3 * pde.residual(u, "consistent")).all()


def test_simpson_is_blind_to_flicker_that_the_flow_map_sees(exact):
    """Why simpson is no reward: .05 (-1)^i is a quarter of the data's norm (8e-4 against 40)."""
    pde, u = make_pde("Burgers-v0", 64), exact[64]
    flicker = u + 0.05 * (-1.0) ** torch.arange(64, dtype=u.dtype)[:, None]
    assert pde.residual(flicker, "simpson").mean() < 3e-3
    assert pde.residual(flicker, "consistent").mean() == pytest.approx(40, rel=0.1)  # (2 * .05 * 63)^2 = 39.7


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_shape_names_and_batch_independence(exact, operator):
    pde, u = make_pde("Burgers-v0", 16), exact[16]
    together = pde.residual(u, operator)
    alone = torch.cat([pde.residual(u[i : i + 1], operator) for i in range(len(u))])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=0)
    rows = {"consistent": 15, "simpson": 14, "paper": 16}[operator]
    assert pde.residual_map(u, operator).shape == (len(u), 1, rows, 16)
    assert pde.residual_map(u.float(), operator).dtype == torch.float32


def test_unknown_operators_envs_shapes_and_resolutions_are_refused_by_name():
    pde = make_pde("Burgers-v0", 16)
    with pytest.raises(ValueError, match="unknown operator 'upwind'.*consistent"):
        pde.residual(torch.zeros(1, 1, 16, 16), "upwind")
    with pytest.raises(ValueError, match=r"\(b, 1, 16, 16\), got \(1, 1, 16, 8\)"):
        pde.residual(torch.zeros(1, 1, 16, 8), "paper")
    with pytest.raises(ValueError, match="unknown env 'Stokes-v0'.*Burgers-v0"):
        make_pde("Stokes-v0")
    for resolution in (6, 17):
        with pytest.raises(ValueError, match=f"got {resolution}"):
            make_pde("Burgers-v0", resolution)


@pytest.mark.parametrize("operator", OPERATORS)
def test_residual_gradients_agree_with_finite_differences(exact, operator):
    pde = make_pde("Burgers-v0", 8)
    u = (exact[8][:1] + 0.1 * noise_like(exact[8][:1])).requires_grad_()
    assert torch.autograd.gradcheck(lambda v: pde.residual_map(v, operator), u)
    assert torch.autograd.gradcheck(lambda v: pde.residual(v, operator), u)


@pytest.mark.parametrize("factor", [0.05, 3.0])
def test_atypicality_gradient_agrees_with_finite_differences_on_both_sides(exact, factor):
    pde = make_pde("Burgers-v0", 8)
    u = (factor * (exact[8][:1] + 0.01 * noise_like(exact[8][:1]))).requires_grad_()
    value = pde.initial_atypicality(u)
    value.sum().backward()
    assert value.item() > 0 and u.grad[:, :, 0].abs().max() > 0  # the tested point is on the active side of the relu
    assert torch.autograd.gradcheck(pde.initial_atypicality, u)


# --- conditions, re-solve, symmetries ---


@pytest.mark.parametrize("resolution", [32, 64])
def test_real_initial_conditions_are_typical_and_scaled_ones_are_not(exact, resolution):
    pde, u = make_pde("Burgers-v0", resolution), exact[resolution]
    quiet, loud = pde.initial_atypicality(0.5 * u).mean(), pde.initial_atypicality(2 * u).mean()
    assert pde.initial_atypicality(u).mean() < 0.05
    assert quiet > 0.3 and loud > 3
    assert (pde.initial_atypicality(0 * u) > 10).all()
    assert list(pde.conditions) == ["initial_condition", "mean"]


def test_the_mean_is_conserved_and_zero_in_every_row(exact):
    pde, u = make_pde("Burgers-v0", 32), exact[32]
    assert pde.mean_violation(u).max() < 1e-7  # aliasing of k = 32 and 64 alone: l_32^2 + l_64^2 = 1.6e-8 in variance
    torch.testing.assert_close(pde.mean_violation(u + 0.1), pde.mean_violation(u) + 0.01, rtol=0.01, atol=0)


def test_atypicality_tolerates_the_stated_noise_and_looks_at_row_0_only(exact):
    pde, u = make_pde("Burgers-v0", 32), exact[32]
    assert pde.initial_atypicality(u + 1e-3 * MODEL_SCALE * noise_like(u)).mean() < 0.05
    assert pde.initial_atypicality(u + 0.1 * noise_like(u)).mean() > 1
    later = u.clone()
    later[:, :, 1:] = 7
    assert torch.equal(pde.initial_atypicality(later), pde.initial_atypicality(u))


def test_atypicality_gradient_at_zero_fields_is_finite():
    u = torch.zeros(1, 1, 32, 32, requires_grad=True)
    make_pde("Burgers-v0", 32).initial_atypicality(u).sum().backward()
    assert torch.isfinite(u.grad).all()


@pytest.mark.parametrize(("resolution", "limit"), [(32, 0.02), (64, 2e-3), (128, 1e-8)])
def test_resolve_error_is_zero_on_exact_data_only(exact, resolution, limit):
    pde, u = make_pde("Burgers-v0", resolution), exact[resolution][:8]
    perturbed = u.clone()
    perturbed[:, :, 1:] += 0.05 * noise_like(u)[:, :, 1:]
    assert pde.resolve(u).shape == u.shape
    assert (pde.resolve_error(u) < limit).all()
    # row 0 unchanged: the error is the perturbation's own relative norm (up to the floor)
    expected = (perturbed - u)[:, :, 1:].flatten(1).norm(dim=1) / u[:, :, 1:].flatten(1).norm(dim=1)
    torch.testing.assert_close(pde.resolve_error(perturbed), expected, rtol=0.05, atol=limit)


def test_persistence_is_the_trivial_competitor_to_beat(exact):
    pde, u = make_pde("Burgers-v0", 32), exact[32]
    trivial = pde.trivial_resolve_error(u)
    assert trivial.mean().item() == pytest.approx(0.67, abs=0.06)
    frozen = u[:, :, :1].expand_as(u).contiguous()
    torch.testing.assert_close(pde.resolve_error(frozen), trivial, rtol=1e-9, atol=0)


@pytest.mark.parametrize("operator", ["consistent", "simpson"])
def test_augmentation_changes_fields_but_no_residual(exact, operator):
    pde = make_pde("Burgers-v0", 32)
    u = exact[32][:16] + 0.05 * noise_like(exact[32][:16])
    moved = pde.augment(u, np.random.default_rng(0))
    assert sum(torch.equal(a, b) for a, b in zip(moved, u, strict=True)) < 4
    assert len({round(float(m.sum() / v.sum())) for m, v in zip(moved, u, strict=True)}) == 2  # some are mirrored, some not
    torch.testing.assert_close(pde.residual(moved, operator), pde.residual(u, operator), rtol=1e-9, atol=0)
    torch.testing.assert_close(pde.initial_atypicality(moved), pde.initial_atypicality(u), rtol=1e-6, atol=1e-9)


def test_marginal_is_row_0_and_normalizer_divides_by_the_model_scale(exact):
    pde, u = make_pde("Burgers-v0", 16), exact[16]
    assert torch.equal(pde.marginal(u), u[:, :, 0])
    torch.testing.assert_close(pde.normalizer.to_model(u), u / 1.415)
    assert pde.grid.spacing == pytest.approx((FINAL_TIME / 15, EXTENT / 16))


def test_solve_is_a_function_of_seed_stream_and_sample_id():
    pde = make_pde("Burgers-v0", 8)
    whole = pde.solve(0, "train", range(5))
    # samples are batched through one matrix product and FFT: the same up to rounding
    torch.testing.assert_close(pde.solve(0, "train", [3, 1]), whole[[3, 1]], rtol=0, atol=1e-13)
    assert not torch.allclose(pde.solve(0, "test", [0]), whole[:1])
    assert not torch.allclose(pde.solve(1, "train", [0]), whole[:1])
