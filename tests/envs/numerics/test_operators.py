"""Spectral and difference operators on uniform grids."""

import math

import pytest
import torch

from envs.numerics.operators import central_difference_replicate, spectral_derivative, wavenumbers, zero_pad_spectrum


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("padded", [9, 16, 32])
def test_zero_padding_keeps_every_grid_value(size, padded):
    u = torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fine = torch.fft.irfft(zero_pad_spectrum(torch.fft.rfft(u), size, padded), n=padded)
    if padded % size == 0:
        torch.testing.assert_close(fine[:, :: padded // size], u, rtol=0, atol=1e-13)
    torch.testing.assert_close(fine.mean(-1), u.mean(-1), rtol=0, atol=1e-13)


def test_zero_padding_keeps_the_nyquist_mode():
    u = (-1.0) ** torch.arange(8, dtype=torch.float64)
    fine = torch.fft.irfft(zero_pad_spectrum(torch.fft.rfft(u), 8, 32), n=32)
    torch.testing.assert_close(fine, torch.cos(torch.pi * torch.arange(32, dtype=torch.float64) / 4), rtol=0, atol=1e-13)


@pytest.mark.parametrize("padded", [4, 8])
def test_padding_to_no_more_points_is_refused(padded):
    with pytest.raises(ValueError, match=f"must exceed 8, got {padded}"):
        zero_pad_spectrum(torch.zeros(5, dtype=torch.complex128), 8, padded)


@pytest.mark.parametrize("size", [15, 16])
@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("extent", [1.0, 2 * math.pi])
def test_spectral_derivative_is_exact_on_sines(size, k, extent):
    w = 2 * math.pi * k / extent
    x = torch.arange(size, dtype=torch.float64) * extent / size
    torch.testing.assert_close(spectral_derivative(torch.sin(w * x), extent), w * torch.cos(w * x), rtol=0, atol=1e-11)
    second = spectral_derivative(torch.sin(w * x), extent, order=2)
    torch.testing.assert_close(second, -(w**2) * torch.sin(w * x), rtol=0, atol=1e-9)


def test_nyquist_mode_has_a_second_but_no_first_derivative():
    u = (-1.0) ** torch.arange(8, dtype=torch.float64)
    torch.testing.assert_close(spectral_derivative(u, 1.0), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(spectral_derivative(u, 1.0, order=2), -((8 * math.pi) ** 2) * u, rtol=1e-12, atol=0)


def test_wavenumbers_are_angular():
    assert wavenumbers(4, 0.5, torch.zeros(1)).tolist() == pytest.approx([0, 4 * math.pi, 8 * math.pi])


@pytest.mark.parametrize("dim", [-1, -2])
def test_central_difference_replicates_its_edges(dim):
    # squares 0 1 4 9, h = 1/2: (u_{i+1} - u_{i-1}) / 1 with the end values repeated
    line = torch.tensor([0.0, 1.0, 4.0, 9.0])
    u = (line if dim == -1 else line[:, None]).expand(1, 1, 4, 4)
    assert central_difference_replicate(u, 0.5, dim).movedim(dim, -1)[0, 0, 0].tolist() == [1, 4, 8, 5]
