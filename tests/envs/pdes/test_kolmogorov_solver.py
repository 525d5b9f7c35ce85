"""The solver of Kolmogorov flow: the equation in Fourier space, the flow map and the initial law."""

import math

import numpy as np
import pytest
import torch

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
from fields import coordinates

REYNOLDS = 40.0


def noise(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def grid_of(spectrum):
    return torch.fft.irfft2(spectrum, s=(spectrum.shape[-2],) * 2)


def band_limited(points, modes, seed=0, scale=4.0):
    """A random field of root mean square ``scale`` without mean, modes |kx|, |ky| <= ``modes``."""
    rough = noise(2 * modes + 2, 2 * modes + 2, seed=seed)
    spectrum = torch.fft.rfft2(rough - rough.mean())
    spectrum[modes + 1], spectrum[:, modes + 1] = 0, 0
    field = grid_of(pad_spectrum(spectrum, points))
    return field * (scale / field.square().mean().sqrt())


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


def test_enstrophy_obeys_its_balance():
    """d/dt <w^2/2> = -<|grad w|^2>/Re - 0.1 <w^2> - 4 <w cos 4y>, integrated by Simpson's rule, for random fields.

    Simpson's error over 2 dt is dt^5/90 times the fourth derivative of the rate, so halving dt divides it by 32.
    """
    n = 64
    start, y = torch.fft.rfft2(torch.stack([band_limited(n, 10, seed) for seed in range(4)])), coordinates(n)[0]

    def imbalance(dt):
        spectra = [start]
        for _ in range(2):
            spectra.append(advance(spectra[-1], REYNOLDS, dt, 8))
        spectrum = torch.stack(spectra, dim=1)
        w = grid_of(spectrum)
        friction = (w * grid_of(spectrum * torch.as_tensor(linear_rates(n, REYNOLDS)))).mean((-2, -1))
        rate = friction - 4 * (w * torch.cos(4 * y)).mean((-2, -1))
        change = (w[:, 2].square() - w[:, 0].square()).mean((-2, -1)) / 2
        assert change.abs().min() > 0.1 * dt
        return (change - dt / 3 * (rate[:, 0] + 4 * rate[:, 1] + rate[:, 2])).abs()

    coarse, fine = imbalance(1 / 32), imbalance(1 / 64)
    assert (coarse > 24 * fine).all() and (fine < 1e-5).all()


@pytest.mark.parametrize(("size", "padded"), [(8, 12), (8, 32), (16, 24), (32, 64)])
def test_padding_keeps_every_grid_value_and_truncation_inverts_it(size, padded):
    w = noise(2, 3, size, size)
    fine = pad_spectrum(torch.fft.rfft2(w), padded)
    if padded % size == 0:
        torch.testing.assert_close(grid_of(fine)[..., :: padded // size, :: padded // size], w, rtol=0, atol=1e-12)
    torch.testing.assert_close(grid_of(truncate_spectrum(fine, size)), w, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=f"must exceed {size}, got {size}"):
        pad_spectrum(torch.fft.rfft2(w), size)


def test_truncation_keeps_the_modes_up_to_half_the_size_as_the_coarse_grid_sees_them():
    fine, coarse = 32, 16
    w = noise(fine, fine)
    kx, ky = np.arange(fine // 2 + 1)[None], np.abs(np.fft.fftfreq(fine, 1 / fine))[:, None]
    kept = torch.as_tensor((kx <= coarse // 2) & (ky <= coarse // 2))
    expected = grid_of(torch.fft.rfft2(w) * kept)[::2, ::2]
    torch.testing.assert_close(grid_of(truncate_spectrum(torch.fft.rfft2(w), coarse)), expected, rtol=0, atol=1e-12)


# --- the flow map ---


def test_flow_map_has_order_4():
    start = torch.fft.rfft2(band_limited(32, 8))
    steps, truth = np.array([8, 16, 32, 64]), advance(start, REYNOLDS, 0.5, 512)
    errors = [grid_of(advance(start, REYNOLDS, 0.5, int(s)) - truth).abs().max().item() for s in steps]
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


# --- the initial law ---


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
