"""Kolmogorov flow: solver, law of the data, symmetries, residual operators and what they see (SCIENCE, section 3)."""

import math

import numpy as np
import pytest
import torch

from envs.pdes import make_pde
from envs.pdes.kolmogorov import MODEL_SCALE, SPEED_LIMIT, WINDOWS_PER_TRAJECTORY
from envs.pdes.kolmogorov_solver import (
    advance,
    forcing_spectrum,
    initial_spectrum,
    linear_rates,
    nonlinear_and_forcing,
    pad_spectrum,
    rates_of,
    truncate_spectrum,
    velocity_factor,
)

ENV_ID = "Kolmogorov-v0"
OPERATORS = ("consistent", "simpson", "paper")
SMALL = 40.0  # the Reynolds number that a 32 x 32 grid resolves


def pde_of(resolution, reynolds=SMALL):
    return make_pde(ENV_ID, resolution, reynolds=reynolds)


def noise_like(fields, seed=0):
    return torch.randn(fields.shape, dtype=fields.dtype, generator=torch.Generator().manual_seed(seed))


def coordinates(points):
    angle = torch.arange(points, dtype=torch.float64) * (2 * torch.pi / points)
    return angle[:, None].expand(points, points), angle[None, :].expand(points, points)  # y (rows), x (columns)


def grid_of(spectrum):
    return torch.fft.irfft2(spectrum, s=(spectrum.shape[-2],) * 2)


def band_limited(points, modes, seed=0, scale=4.0):
    """A random field of root mean square ``scale`` without mean, modes |kx|, |ky| <= ``modes``."""
    rough = noise_like(torch.empty(2 * modes + 2, 2 * modes + 2, dtype=torch.float64), seed)
    spectrum = torch.fft.rfft2(rough - rough.mean())
    spectrum[modes + 1], spectrum[:, modes + 1] = 0, 0
    field = grid_of(pad_spectrum(spectrum, points))
    return field * (scale / field.square().mean().sqrt())


@pytest.fixture(scope="module")
def exact():
    """Solver data by resolution at Re 40, solved once: windows of few trajectories."""
    counts = {8: 2, 16: 4, 32: 64}
    return {n: pde_of(n).solve(0, "test", range(count)) for n, count in counts.items()}


# --- the equation in Fourier space ---


def test_velocity_has_the_stated_signs_no_divergence_and_the_vorticity_as_its_curl():
    n = 16
    y, x = coordinates(n)
    w = 13 * torch.sin(2 * x) * torch.cos(3 * y)  # lap psi = -w: psi = sin 2x cos 3y
    velocity = torch.fft.rfft2(w) * velocity_factor(n, torch.complex128, torch.device("cpu"))
    u, v = grid_of(velocity)
    torch.testing.assert_close(u, -3 * torch.sin(2 * x) * torch.sin(3 * y), rtol=0, atol=1e-12)
    torch.testing.assert_close(v, -2 * torch.cos(2 * x) * torch.cos(3 * y), rtol=0, atol=1e-12)
    general = torch.fft.rfft2(band_limited(n, 6))
    u_hat, v_hat = general * velocity_factor(n, torch.complex128, torch.device("cpu"))
    kx, ky = torch.arange(n // 2 + 1)[None], torch.as_tensor(np.fft.fftfreq(n, 1 / n))[:, None]
    assert (kx * u_hat + ky * v_hat).abs().max() < 1e-12
    torch.testing.assert_close(1j * (kx * v_hat - ky * u_hat), general, rtol=0, atol=1e-11)


def test_nonlinear_term_is_minus_u_grad_w_plus_the_forcing():
    n, y = 32, coordinates(32)[0]
    w = band_limited(n, 5)  # products reach mode 10: no aliasing, nothing dealiased away
    spectrum = torch.fft.rfft2(w)
    kx, ky = torch.arange(n // 2 + 1)[None], torch.as_tensor(np.fft.fftfreq(n, 1 / n))[:, None]
    u, v = grid_of(spectrum * velocity_factor(n, torch.complex128, torch.device("cpu")))
    expected = -u * grid_of(1j * kx * spectrum) - v * grid_of(1j * ky * spectrum) - 4 * torch.cos(4 * y)
    torch.testing.assert_close(grid_of(nonlinear_and_forcing(spectrum)), expected, rtol=0, atol=1e-10)


def test_dealiased_advection_conserves_energy_and_enstrophy_exactly():
    n = 32
    w = band_limited(n, 10)  # every mode that 2/3 dealiasing keeps
    spectrum = torch.fft.rfft2(w)
    advection = grid_of(nonlinear_and_forcing(spectrum) - forcing_spectrum(n, torch.complex128, torch.device("cpu")))
    square = np.maximum(-(linear_rates(n, 1.0) + 0.1), 1.0)  # |k|^2; the mean has no vorticity
    stream = grid_of(spectrum / torch.as_tensor(square))
    assert advection.square().mean() > 10
    assert abs((advection * w).mean()) < 1e-12 * advection.square().mean()
    assert abs((advection * stream).mean()) < 1e-12 * advection.square().mean()


def test_enstrophy_obeys_its_balance(exact):
    # d/dt <w^2/2> = -<|grad w|^2>/Re - 0.1 <w^2> - 4 <w cos 4y>, integrated by Simpson's rule
    n, dt = 64, 1 / 256
    spectra = [pad_spectrum(torch.fft.rfft2(exact[32][:8, 0]), n)]
    for _ in range(2):
        spectra.append(advance(spectra[-1], SMALL, dt, 2))
    spectrum = torch.stack(spectra, dim=1)
    w, y = grid_of(spectrum), coordinates(n)[0]
    friction = (w * grid_of(spectrum * torch.as_tensor(linear_rates(n, SMALL)))).mean((-2, -1))
    rate = friction - 4 * (w * torch.cos(4 * y)).mean((-2, -1))
    change = (w[:, 2].square() - w[:, 0].square()).mean((-2, -1)) / 2
    assert change.abs().max() > 1e-3
    torch.testing.assert_close(change, dt / 3 * (rate[:, 0] + 4 * rate[:, 1] + rate[:, 2]), rtol=0, atol=1e-8)


@pytest.mark.parametrize(("size", "padded"), [(8, 12), (8, 32), (16, 24), (32, 64)])
def test_padding_keeps_every_grid_value_and_truncation_inverts_it(size, padded):
    w = noise_like(torch.empty(2, 3, size, size, dtype=torch.float64))
    fine = pad_spectrum(torch.fft.rfft2(w), padded)
    if padded % size == 0:
        torch.testing.assert_close(grid_of(fine)[..., :: padded // size, :: padded // size], w, rtol=0, atol=1e-12)
    torch.testing.assert_close(grid_of(truncate_spectrum(fine, size)), w, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=f"must exceed {size}, got {size}"):
        pad_spectrum(torch.fft.rfft2(w), size)


def test_truncation_keeps_the_modes_up_to_half_the_size_as_the_coarse_grid_sees_them():
    fine, coarse = 32, 16
    w = noise_like(torch.empty(fine, fine, dtype=torch.float64))
    kx, ky = np.arange(fine // 2 + 1)[None], np.abs(np.fft.fftfreq(fine, 1 / fine))[:, None]
    kept = torch.as_tensor((kx <= coarse // 2) & (ky <= coarse // 2))
    expected = grid_of(torch.fft.rfft2(w) * kept)[::2, ::2]
    torch.testing.assert_close(grid_of(truncate_spectrum(torch.fft.rfft2(w), coarse)), expected, rtol=0, atol=1e-12)


# --- the solver ---


def test_flow_map_has_order_4():
    start = torch.fft.rfft2(band_limited(32, 8))
    steps, truth = np.array([8, 16, 32, 64]), advance(start, SMALL, 0.5, 512)
    errors = [grid_of(advance(start, SMALL, 0.5, int(s)) - truth).abs().max().item() for s in steps]
    assert np.polyfit(np.log(0.5 / steps), np.log(errors), 1)[0] == pytest.approx(4, abs=0.3)


@pytest.mark.parametrize("reynolds", [1.0, 40.0, 1000.0])
def test_laminar_flow_relaxes_exactly_to_the_balance_of_forcing_and_friction(reynolds):
    # w = a cos 4y + b cos 4x has psi = w/16, so no advection: a' = -r a - 4, b' = -r b, r = 16/Re + 0.1
    n, duration, rate = 16, 1.5, 16 / reynolds + 0.1
    y, x = coordinates(n)
    start = 3 * torch.cos(4 * y) + 2 * torch.cos(4 * x)
    balance, decay = -4 / rate, math.exp(-rate * duration)
    truth = (balance + (3 - balance) * decay) * torch.cos(4 * y) + 2 * decay * torch.cos(4 * x)
    solved = grid_of(advance(torch.fft.rfft2(start), reynolds, duration, 4))
    torch.testing.assert_close(solved, truth, rtol=0, atol=1e-11)
    steady = torch.fft.rfft2(balance * torch.cos(4 * y))
    assert rates_of(steady, reynolds).abs().max() < 1e-10 * steady.abs().max()


def test_initial_law_has_the_stated_variance():
    # variance of mode k: amplitude^2 (real part of a complex normal of unit variance a component); std .2605 in all
    k = np.arange(-8, 9)
    square = k[:, None] ** 2 + k[None] ** 2
    amplitude = np.sqrt(2) * 7**1.5 * (4 * np.pi**2 * square + 49) ** -1.25 * (square > 0)
    fields = grid_of(initial_spectrum(0, "law", range(400), 32))
    assert fields.square().mean().sqrt().item() == pytest.approx(math.sqrt((amplitude**2).sum()), rel=0.05)
    assert fields.mean((-2, -1)).abs().max() < 1e-15
    power = torch.fft.fft2(fields, norm="forward").abs().square().mean(0)[3, 1]
    # c_k = (a z_k + a conj z_{-k})/2, E|z|^2 = 2: E|c_k|^2 = a^2
    assert power.item() == pytest.approx(amplitude[11, 9] ** 2, rel=0.25)


def test_initial_law_does_not_depend_on_the_grid():
    coarse, fine = (initial_spectrum(3, "law", range(2), points) for points in (32, 64))
    torch.testing.assert_close(grid_of(fine)[..., ::2, ::2], grid_of(coarse), rtol=0, atol=1e-13)


def test_solve_gives_the_same_bits_however_ids_are_batched(exact):
    pde, m, whole = pde_of(8), WINDOWS_PER_TRAJECTORY, pde_of(8).solve(0, "test", range(40))
    assert pde_of(32).solved_together == m
    assert torch.equal(whole[:2], exact[8])
    picked = [m + 3, 5, 0, 5]  # out of order, twice, from two trajectories
    assert torch.equal(pde.solve(0, "test", picked), whole[picked])
    assert torch.equal(torch.cat([pde.solve(0, "test", [i]) for i in picked[:2]]), whole[picked[:2]])
    assert not torch.allclose(pde.solve(0, "train", [0]), whole[:1])
    assert not torch.allclose(pde.solve(1, "test", [0]), whole[:1])
    assert pde.solve(0, "test", []).shape == (0, 3, 8, 8)


def test_data_are_turbulent_and_independent_up_to_symmetry(exact):
    w = exact[32][:, 0]
    fluctuation = (w - w.mean(0)).flatten(1)
    correlation = torch.corrcoef(fluctuation) - torch.eye(len(w))
    assert w.std().item() == pytest.approx(2.9, rel=0.1)  # the laminar flow of Re 40 has 8/sqrt 2 = 5.7
    assert abs(correlation.mean()) < 0.1 and abs(correlation.diagonal(1).mean()) < 0.1
    assert correlation.max() < 0.95


@pytest.mark.slow
def test_statistics_are_stationary_after_the_burn_in():
    w = pde_of(32).solve(2, "stationary", range(16 * WINDOWS_PER_TRAJECTORY))[:, 0]
    enstrophy = w.square().mean((-2, -1)).view(16, WINDOWS_PER_TRAJECTORY)
    early, late = enstrophy[:, :8].mean(1), enstrophy[:, -8:].mean(1)
    error = ((early.var() + late.var()) / 16).sqrt()
    assert abs(early.mean() - late.mean()) < 3 * error
    assert w.std().item() == pytest.approx(2.93, rel=0.06)


# --- residual operators ---


def test_consistent_operator_is_far_below_a_thousandth_of_noise_on_exact_data(exact):
    pde, w = pde_of(32), exact[32]
    noisy = w + 1e-3 * MODEL_SCALE * noise_like(w)
    floor, disturbed = (pde.residual(f, "consistent").mean().item() for f in (w, noisy))
    assert floor < 0.025
    assert disturbed - floor == pytest.approx(0.26, rel=0.15)


@pytest.mark.parametrize(("operator", "limit"), [("simpson", 0.035), ("paper", 0.1)])
def test_comparison_operators_are_small_at_32_points_too(exact, operator, limit):
    assert pde_of(32).residual(exact[32], operator).mean() < limit


@pytest.mark.parametrize("operator", OPERATORS)
def test_laminar_balance_has_no_residual(operator):
    # SCIENCE, section 3: trivial states are exact solutions; no residual can refuse them
    y = coordinates(16)[0]
    laminar = (-4 / (16 / SMALL + 0.1) * torch.cos(4 * y)).expand(1, 3, 16, 16)
    assert pde_of(16).residual(laminar, operator).item() < 1e-20


def grid_modes(n):
    """Every real 2-D Fourier mode of an n x n grid, unit root mean square: (n^2, n, n), and their names."""
    angle = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    basis, names = [torch.ones(n, dtype=torch.float64)], ["0"]
    for k in range(1, n // 2):
        basis += [2**0.5 * torch.cos(k * angle), 2**0.5 * torch.sin(k * angle)]
        names += [f"cos{k}", f"sin{k}"]
    basis, names = torch.stack([*basis, torch.cos(n // 2 * angle)]), [*names, "nyquist"]
    modes = basis[:, None, :, None] * basis[None, :, None, :]
    return modes.reshape(n * n, n, n), [f"y:{a} x:{b}" for a in names for b in names]


@pytest.mark.parametrize("frame", [0, 1])
def test_consistent_residual_sees_every_mode_of_a_frame(exact, frame):
    n = 32
    pde, w = pde_of(n), exact[n][:1]
    modes, names = grid_modes(n)
    unseen = []
    for start in range(0, n * n, 128):
        changed = w.repeat(128, 1, 1, 1)
        changed[:, frame] += 0.05 * modes[start : start + 128]
        seen = pde.residual(changed, "consistent").tolist()
        unseen += [f"{names[start + i]}: {r:.1e}" for i, r in enumerate(seen) if r < 0.5]
    # 0.05^2 32^2 / 2 = 1.28; in frame 0 less the decay over one frame, exp(-2 (512/40 + 0.1)/32) = 0.45 for the corner
    assert not unseen, f"floor {pde.residual(w, 'consistent').item():.1e}, unseen modes {unseen}"


def test_flow_map_sees_the_flicker_that_simpson_hardly_sees(exact):
    pde, w = pde_of(32), exact[32]
    flicker = w + 0.2 * torch.tensor([1.0, -1.0, 1.0], dtype=w.dtype)[:, None, None]
    assert pde.residual(flicker, "consistent").mean() == pytest.approx((2 * 0.2 * 32) ** 2, rel=0.05)
    assert pde.residual(flicker, "simpson").mean() < 0.1


@pytest.mark.parametrize("operator", OPERATORS)
def test_operator_shapes_types_and_batch_independence(exact, operator):
    pde, w = pde_of(16), exact[16]
    together = pde.residual(w, operator)
    alone = torch.cat([pde.residual(w[i : i + 1], operator) for i in range(len(w))])
    torch.testing.assert_close(together, alone, rtol=1e-10, atol=0)
    assert pde.residual_map(w, operator).shape == (len(w), 2 if operator == "consistent" else 1, 16, 16)
    assert pde.residual_map(w.float(), operator).dtype == torch.float32
    torch.testing.assert_close(pde.residual(w.float(), operator).double(), together, rtol=1e-3, atol=0)


@pytest.mark.parametrize(("operator", "scale"), [*((name, 1.0) for name in OPERATORS), ("consistent", 30.0)])
def test_residual_gradients_agree_with_finite_differences(exact, operator, scale):
    pde = pde_of(8)
    w = (scale * (exact[8][:1] + 0.1 * noise_like(exact[8][:1]))).requires_grad_()  # the second beyond the speed limit
    assert (pde._velocity(w).abs().max() > SPEED_LIMIT) == (scale > 1)
    assert torch.autograd.gradcheck(lambda f: pde.residual_map(f, operator) / scale**2, w, atol=1e-4)
    assert torch.autograd.gradcheck(pde.mean_violation, w)


@pytest.mark.parametrize("resolution", [8, 32, 64])
@pytest.mark.parametrize("kind", ["white", "smooth"])
@pytest.mark.parametrize("reynolds", [40.0, 1000.0])
def test_consistent_residual_and_gradient_stay_finite_on_any_field(resolution, kind, reynolds):
    pde, n = pde_of(resolution, reynolds), resolution
    white = 80 * MODEL_SCALE * noise_like(torch.empty(2, 3, n, n))
    y, x = coordinates(n)
    w = white if kind == "white" else (80 * MODEL_SCALE * (torch.cos(x) + torch.sin(y))).float().expand(2, 3, n, n) + white / 100
    w = w.clone().requires_grad_()
    residual = pde.residual(w, "consistent")
    residual.sum().backward()
    assert torch.isfinite(residual).all() and torch.isfinite(w.grad).all()
    assert residual.min() > 1e4 and residual.max() < 1e12  # far over any real one's; no overflow in single precision


def test_zero_fields_have_finite_gradients():
    w = torch.zeros(1, 3, 16, 16, requires_grad=True)
    pde_of(16).residual(w, "consistent").sum().backward()
    assert torch.isfinite(w.grad).all()


# --- symmetries, conditions, re-solve ---


@pytest.mark.parametrize("operator", OPERATORS)
def test_augmentation_is_a_symmetry_of_every_residual(exact, operator):
    pde, w = pde_of(32), exact[32][:2] + 0.1 * noise_like(exact[32][:2])  # products of Nyquist noise alias: 1e-6 at most
    expected, images = pde.residual(w, operator), []
    for eighths in range(8):
        for turn in range(2):
            images.append(pde.moved(w, 5, eighths, turn))
            torch.testing.assert_close(pde.residual(images[-1], operator), expected, rtol=1e-5, atol=0)
    assert len({round(float(i[0, 0, 3, 7]), 9) for i in images}) == 16


def test_what_is_no_symmetry_changes_the_residual(exact):
    pde, w = pde_of(32), exact[32][:2]
    for moved in (-w, torch.roll(w, 4, dims=-2), -torch.roll(w.flip(-1), 1, dims=-1), w.flip(-1), torch.roll(w, 1, dims=-2)):
        assert (pde.residual(moved, "consistent") > 1).all()
    assert (pde.residual(torch.roll(w, 8, dims=-2), "consistent") < 0.1).all()


def test_augment_draws_from_the_whole_group(exact):
    pde, w = pde_of(32), exact[32]
    moved = pde.augment(w, np.random.default_rng(0))
    assert sum(torch.equal(a, b) for a, b in zip(moved, w, strict=True)) < 3
    odd = (moved.flatten(1).max(1).values - w.flatten(1).max(1).values).abs() > 1e-9
    assert 0.25 < odd.double().mean() < 0.75  # glides exchange maximum and minimum
    torch.testing.assert_close(moved.square().mean((-2, -1)), w.square().mean((-2, -1)))


def test_the_mean_vorticity_is_zero_in_every_frame(exact):
    pde, w = pde_of(32), exact[32]
    assert list(pde.conditions) == ["mean"]
    assert pde.mean_violation(w).max() < 1e-20
    shifted = w + torch.tensor([0.3, 0.0, 0.0], dtype=w.dtype)[:, None, None]
    torch.testing.assert_close(pde.mean_violation(shifted), torch.full((len(w),), 0.03, dtype=w.dtype))


def test_resolve_error_is_small_on_exact_data_and_far_below_persistence(exact):
    pde, w = pde_of(32), exact[32][:16]
    perturbed = w.clone()
    perturbed[:, 1:] += 0.3 * noise_like(w)[:, 1:]
    error, trivial = pde.resolve_error(w), pde.trivial_resolve_error(w)
    assert pde.resolve(w).shape == w.shape and torch.equal(pde.resolve(w)[:, 0], w[:, 0])
    assert error.max() < 5e-3 and (error < 0.15 * trivial).all()
    expected = (perturbed - w)[:, 1:].flatten(1).norm(dim=1) / w[:, 1:].flatten(1).norm(dim=1)
    torch.testing.assert_close(pde.resolve_error(perturbed), expected, rtol=0.05, atol=0)
    torch.testing.assert_close(pde.resolve_error(w[:, :1].expand_as(w)), trivial, rtol=1e-9, atol=0)


def test_marginal_normalizer_and_grid(exact):
    pde, w = pde_of(16), exact[16]
    assert torch.equal(pde.marginal(w), w[:, :1])
    torch.testing.assert_close(pde.normalizer.to_model(w), w / 12)
    assert pde.grid.periodic == (True, True)
    assert pde.grid.spacing == pytest.approx((2 * math.pi / 16, 2 * math.pi / 16))


def test_bad_parameters_resolutions_and_operators_are_refused_by_name():
    assert make_pde(ENV_ID).parameters == {"reynolds": 1000.0} and make_pde(ENV_ID).resolution == 256
    for value in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"reynolds of {ENV_ID} must be positive and finite, got {value}"):
            make_pde(ENV_ID, 16, reynolds=value)
    with pytest.raises(ValueError, match="unknown parameter 'viscosity'.*reynolds"):
        make_pde(ENV_ID, 16, viscosity=1.0)
    with pytest.raises(ValueError, match="multiple of 8, got 12"):
        make_pde(ENV_ID, 12)
    with pytest.raises(ValueError, match="unknown operator 'upwind'.*consistent"):
        pde_of(8).residual(torch.zeros(1, 3, 8, 8), "upwind")
    with pytest.raises(ValueError, match=r"\(b, 3, 8, 8\), got \(1, 1, 8, 8\)"):
        pde_of(8).residual(torch.zeros(1, 1, 8, 8), "paper")


# --- Re 1000 ---


@pytest.fixture(scope="module")
def turbulent():
    """Re 1000 on 256^2: two windows of a trajectory."""
    return make_pde(ENV_ID).solve(0, "test", [0, 1])


@pytest.mark.slow
def test_standard_deviation_at_re_1000_is_that_of_the_literature(turbulent):
    assert turbulent.std().item() == pytest.approx(4.4, rel=0.25)  # public data 4.787, another re-creation 4.07


@pytest.mark.slow
def test_paper_operator_has_the_floor_of_the_literature_and_the_consistent_one_vanishes(turbulent):
    pde = make_pde(ENV_ID)
    assert 0.26 < pde.residual(turbulent, "paper").mean() < 12  # literature 2.68 (0.26 to 6.5); here 1.2 to 7.6
    assert pde.residual(turbulent, "consistent").mean() < 5e-3  # 1e-4 to 1.5e-3
    assert pde.resolve_error(turbulent).max() < 1e-3
