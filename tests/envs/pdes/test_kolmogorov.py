"""Kolmogorov flow: law of the data, symmetries, residual operators and what they see.

Trajectories are chaotic: rounding, which depends on the processor, is amplified to the size of the flow within the burn-in. So
solver data are other draws of the same law on every machine. A test here states what holds for every field, compares two
operators on the same field, or allows 5 standard errors over independent trajectories. The spreads in the comments are measured
over 40 or more draws.
"""

import math

import numpy as np
import pytest
import torch

from envs.pdes import make_pde
from envs.pdes.kolmogorov import FRAMES_PER_SECOND, MODEL_SCALE, SPEED_LIMIT, WINDOWS_PER_TRAJECTORY
from fields import coordinates, grid_modes, noise_like

ENV_ID = "Kolmogorov-v0"
OPERATORS = ("consistent", "simpson", "paper")
SMALL = 40.0  # the Reynolds number that a 32 x 32 grid resolves


def pde_of(resolution, reynolds=SMALL):
    return make_pde(ENV_ID, resolution, reynolds=reynolds)


def windows_of(trajectories, count):
    """Sample ids of the first windows of the first trajectories."""
    return [WINDOWS_PER_TRAJECTORY * t + i for t in range(trajectories) for i in range(count)]


@pytest.fixture(scope="module")
def exact():
    """Solver data by resolution at Re 40, solved once: 16 trajectories of two windows on the grid that resolves them."""
    ids = {8: range(2), 16: range(4), 32: windows_of(16, 2)}
    return {n: pde_of(n).solve(0, "test", ids[n]) for n in ids}


# --- the law of the data ---


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


def test_the_enstrophy_is_turbulent(exact):
    """Mean enstrophy 8.6 at Re 40, standard deviation 1.85 of a trajectory at a time: 5 standard errors of 16 trajectories.

    The laminar flow of Re 40 has 8^2/2 = 32. A flow without drag or with the viscosity of Re 200 has 15 and more.
    """
    enstrophy = exact[32][:, 0].square().mean((-2, -1)).view(16, 2).mean(1)
    assert abs(enstrophy.mean().item() - 8.6) < 5 * 1.85 / 16**0.5
    assert enstrophy.std() > 0.3  # the trajectories differ


def test_neighbouring_windows_are_independent_up_to_symmetry(exact):
    """The random symmetry lowers their correlation from .88 to 0, with a standard deviation of .21 over pairs: 5 standard errors."""
    w = exact[32][:, 0].flatten(1)
    correlation = torch.corrcoef(w - w.mean(0))
    pairs = torch.stack([correlation[2 * t, 2 * t + 1] for t in range(16)])
    assert abs(pairs.mean()) < 5 * 0.21 / 16**0.5


@pytest.mark.slow
def test_statistics_are_stationary_after_the_burn_in():
    """Early and late windows of the same 16 trajectories have the same mean enstrophy, up to 5 standard errors of the difference.

    Five errors are less than a third of the enstrophy, so a flow that still grows from the initial law (.07) is found.
    """
    w = pde_of(32).solve(2, "stationary", range(16 * WINDOWS_PER_TRAJECTORY))[:, 0]
    enstrophy = w.square().mean((-2, -1)).view(16, WINDOWS_PER_TRAJECTORY)
    change = enstrophy[:, -8:].mean(1) - enstrophy[:, :8].mean(1)
    error = change.std() / 16**0.5
    assert abs(change.mean()) < 5 * error < 8.6 / 3
    each = enstrophy.mean(1)  # 32 s of a trajectory
    assert abs(each.mean() - 8.6) < 5 * each.std() / 16**0.5 < 8.6 / 4


# --- residual operators ---


def test_noise_adds_to_the_consistent_residual_what_the_linear_decay_leaves(exact):
    """White noise of variance s^2 in both frames adds s^2/dt^2 (1 + <exp(-2 (|k|^2/Re + 0.1) dt)>), the mean over the modes.

    Advection moves noise and hardly changes its size. A wrong dt, damping or dealiasing changes the sum by 10% and more.
    """
    pde, w, dt = pde_of(32), exact[32], 1 / FRAMES_PER_SECOND
    added = pde.residual(w + 1e-3 * MODEL_SCALE * noise_like(w), "consistent") - pde.residual(w, "consistent")
    k = np.fft.fftfreq(32, 1 / 32)
    decay = np.exp(-2 * ((k[:, None] ** 2 + k**2) / SMALL + 0.1) * dt).mean()
    assert added.mean().item() == pytest.approx((1e-3 * MODEL_SCALE / dt) ** 2 * (1 + decay), rel=0.03)


def test_exact_data_have_a_tenth_of_the_residual_of_small_noise_under_every_operator(exact):
    """The floor is the stress of the scales that 32 points do not store: .007 +- .005 at a time, noise of 1e-3 has .26.

    Both other operators see the same stress. Their residuals over it are 1.36 to 1.49 (simpson) and 2.1 to 3.2 (paper) for every
    field. A wrong coefficient, grid or sign in an operator makes its ratio 10 and more.
    """
    pde, w = pde_of(32), exact[32]
    floor, simpson, paper = (pde.residual(w, name) for name in OPERATORS)
    assert floor.mean() < 0.26 / 10
    assert (simpson > 0.7 * floor).all() and (simpson < 3 * floor).all()
    assert (paper > floor).all() and (paper < 6 * floor).all()


def test_paper_operator_is_the_stated_formula_on_any_field():
    """(w_2 - w_0) / 2dt + u . grad w - lap w / Re + 0.1 w + 4 cos 4y of frame 1, by full transforms and products on the grid."""
    n = 16
    fields = 4 * noise_like(torch.empty(2, 3, n, n, dtype=torch.float64))
    before, w, after = fields.numpy().transpose(1, 0, 2, 3)
    ky, kx = np.meshgrid(np.fft.fftfreq(n, 1 / n), np.fft.fftfreq(n, 1 / n), indexing="ij")
    square = kx**2 + ky**2
    spectrum = np.fft.fft2(w)
    stream = np.divide(spectrum, square, out=np.zeros_like(spectrum), where=square > 0)

    def grid(values):
        return np.fft.ifft2(values).real

    advection = grid(1j * ky * stream) * grid(1j * kx * spectrum) - grid(1j * kx * stream) * grid(1j * ky * spectrum)
    expected = (after - before) * 16 + advection + grid(square * spectrum) / SMALL + 0.1 * w
    expected += 4 * np.cos(4 * coordinates(n)[0].numpy())
    np.testing.assert_allclose(pde_of(n).residual_map(fields, "paper")[:, 0].numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("operator", OPERATORS)
def test_laminar_balance_has_no_residual(operator):
    # trivial states are exact solutions; no residual can refuse them
    y = coordinates(16)[0]
    laminar = (-4 / (16 / SMALL + 0.1) * torch.cos(4 * y)).expand(1, 3, 16, 16)
    assert pde_of(16).residual(laminar, operator).item() < 1e-20


@pytest.mark.parametrize(("frame", "kept"), [(0, 0.4), (1, 1.0)])
def test_consistent_residual_sees_every_mode_of_a_frame(exact, frame, kept):
    """A mode of amplitude .2 changes one of two maps by .2/dt: its mean square is (.2 * 32)^2 / 2 = 20.5 in frame 1.

    In frame 0 it decays before: exp(-2 (128/40 + 0.1)/32) = .81 at the corner, of which advection leaves at least half. The
    residual of the changed field is at least the square of (the change's root mean square - the floor's), for every field.
    """
    n, size = 16, 0.2
    pde, w = pde_of(n), exact[n][:1]
    modes, names = grid_modes(n)
    changed = w.repeat(n * n, 1, 1, 1)
    changed[:, frame] += size * modes
    floor = pde.residual(w, "consistent").item()
    least = (math.sqrt(kept * (size * FRAMES_PER_SECOND) ** 2 / 2) - math.sqrt(floor)) ** 2
    seen = pde.residual(changed, "consistent").tolist()
    unseen = [f"{name}: {r:.1e}" for name, r in zip(names, seen, strict=True) if r < least]
    assert not unseen, f"floor {floor:.1e}, at least {least:.1e} expected of {unseen}"


def test_flow_map_sees_the_flicker_that_simpson_hardly_sees(exact):
    """Flicker of the mean vorticity, +.2, -.2, +.2: no velocity belongs to it, so both residuals are known exactly.

    The flow map damps it by d = exp(-0.1 dt) and adds (.2 (1 + d)/dt)^2. Simpson's rule adds (0.1 * .2/3)^2, from the drag.
    """
    pde, w, dt = pde_of(32), exact[32], 1 / FRAMES_PER_SECOND
    flicker = w + 0.2 * torch.tensor([1.0, -1.0, 1.0], dtype=w.dtype)[:, None, None]
    added = {name: pde.residual(flicker, name) - pde.residual(w, name) for name in ("consistent", "simpson")}
    expected = {"consistent": (0.2 * (1 + math.exp(-0.1 * dt)) / dt) ** 2, "simpson": (0.1 * 0.2 / 3) ** 2}
    for name, value in expected.items():
        torch.testing.assert_close(added[name], torch.full_like(added[name], value), rtol=1e-6, atol=1e-12)


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
    torch.testing.assert_close(
        pde.residual(torch.roll(w, 8, dims=-2), "consistent"), pde.residual(w, "consistent"), rtol=1e-9, atol=0
    )


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
    """The error is the consistent residual r integrated over a frame: sqrt(r) dt / rms(w), times .94 to 1.17 for every field.

    Persistence is off by the field's own rate, 10 times as much and more. A re-solve with a wrong equation is off by that too.
    """
    pde, w = pde_of(32), exact[32]
    perturbed = w.clone()
    perturbed[:, 1:] += 0.3 * noise_like(w)[:, 1:]
    error, trivial = pde.resolve_error(w), pde.trivial_resolve_error(w)
    assert pde.resolve(w).shape == w.shape and torch.equal(pde.resolve(w)[:, 0], w[:, 0])
    predicted = pde.residual(w, "consistent").sqrt() / FRAMES_PER_SECOND / w.square().mean((1, 2, 3)).sqrt()
    assert (error > 0.6 * predicted).all() and (error < 1.7 * predicted).all()
    assert (error < 0.25 * trivial).all()  # .03 to .11
    expected = (perturbed - w)[:, 1:].flatten(1).norm(dim=1) / w[:, 1:].flatten(1).norm(dim=1)
    torch.testing.assert_close(pde.resolve_error(perturbed), expected, rtol=0.02, atol=0)
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


@pytest.mark.slow
def test_standard_deviation_at_re_1000_is_that_of_the_literature():
    """Public data, 40 trajectories: 4.787, an enstrophy of 22.9. The large scales carry it, so 64 points are enough.

    The enstrophy of a trajectory at a time has a standard deviation of 3.2: 5 standard errors of the difference.
    """
    w = pde_of(64, 1000.0).solve(0, "test", windows_of(16, 1))[:, 0]
    assert abs(w.square().mean().item() - 4.787**2) < 5 * 3.2 * (1 / 16 + 1 / 40) ** 0.5


@pytest.mark.slow
def test_the_three_operators_at_re_1000_stand_in_the_order_of_their_errors():
    """The residuals of single fields differ 30-fold (paper .7 to 21 over 6 trajectories, literature .26 to 6.5), with how
    rough a field is. Their ratios on the same field hardly do: paper over simpson 18 to 85, simpson over consistent 80 to 1500.

    paper: the error of the central difference, h^2/6 w_ttt. By Cauchy and Schwarz <w_ttt^2> >= <w_tt^2>^2 / <w_t^2>, so its
    floor is at least h^4/36 <w_tt^2>^2 / <w_t^2>; 4.0 to 6.4 times this for every field, as long as the units, the time step
    and the grid are right. consistent and re-solve: a thousandth of paper and of persistence.
    """
    pde, h = make_pde(ENV_ID), 1 / FRAMES_PER_SECOND
    w = pde.solve(0, "test", [0, 1])
    consistent, simpson, paper = (pde.residual(w, name) for name in OPERATORS)
    w_tt = ((w[:, 2] - 2 * w[:, 1] + w[:, 0]) / h**2).square().mean((-2, -1))
    w_t = ((w[:, 2] - w[:, 0]) / (2 * h)).square().mean((-2, -1))
    least = h**4 / 36 * w_tt**2 / w_t
    assert (paper > least).all() and (paper < 20 * least).all()
    assert (simpson < paper / 5).all() and (consistent < simpson / 10).all()
    assert (pde.resolve_error(w) < 0.01 * pde.trivial_resolve_error(w)).all()
