"""Spectra of known fields: cosines, ramps, white noise, blurs. Derivations stand beside the values."""

import math

import pytest
import torch

from pirf_ray.metrics import spectra

PERIODIC = (True, True)


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


REFERENCE = gaussian(0, 50, 2, 16, 16) * torch.tensor([1.0, 30.0], dtype=torch.float64)[:, None, None]


def smoothed(fields: torch.Tensor) -> torch.Tensor:
    return (fields + fields.roll(1, -1) + fields.roll(1, -2) + fields.roll((1, 1), (-1, -2))) / 4


def blurred(x: torch.Tensor) -> torch.Tensor:
    """(x_{j-1} + 2 x_j + x_{j+1}) / 4 along columns, periodic: transfer function (1 + cos(2 pi k / n)) / 2."""
    return (x.roll(1, -1) + 2 * x + x.roll(-1, -1)) / 4


def test_spectrum_errors_are_told_by_channel() -> None:
    """Channel 0 is twice as large, four times its power: log10(4) decades in every bin; channel 1 is the reference's own."""
    b = gaussian(0, 64, 2, 8, 8)
    a = b * torch.tensor([2.0, 1.0])[:, None, None]
    assert spectra.log_spectrum_errors(a, b).tolist() == pytest.approx([math.log10(4), 0], abs=1e-9)
    assert spectra.log_spectrum_error(a, b) == pytest.approx(math.log10(4) / math.sqrt(2))


def test_spectrum_of_a_cosine() -> None:
    """2 cos(2 pi 3 x) has mean square 2, all of it at k = 3; a Hann window leaves no more than the two neighbours."""
    x = torch.arange(16, dtype=torch.float64) / 16
    rows = (2 * torch.cos(6 * torch.pi * x)).expand(5, 1, 8, 16)
    expected = torch.zeros(1, 9, dtype=torch.float64)
    expected[0, 3] = 2
    torch.testing.assert_close(spectra.spectrum(rows), expected)
    torch.testing.assert_close(spectra.spectrum(rows.transpose(-1, -2), -2), expected)
    windowed = spectra.spectrum(rows, periodic=False)[0]
    assert windowed.sum().item() == pytest.approx(2)
    assert windowed[2:5].sum().item() == pytest.approx(2)
    noise = gaussian(0, 20, 1, 8, 15)
    assert spectra.spectrum(noise).sum().item() == pytest.approx(noise.square().mean().item())


@pytest.mark.parametrize("periodic", [(True, True), (False, True), (False, False)])
def test_blur_and_noise_show_in_the_spectrum(periodic: tuple[bool, bool]) -> None:
    b = smoothed(gaussian(0, 60, 2, 16, 16))
    assert (spectra.high_wavenumber_ratio(smoothed(b), b, periodic) < 0.5).all()
    assert (spectra.high_wavenumber_ratio(b + gaussian(1, *b.shape), b, periodic) > 1.5).all()
    assert spectra.log_spectrum_error(b, b, periodic) == 0
    assert spectra.log_spectrum_error(10 * b, b, periodic) == pytest.approx(2)
    torch.testing.assert_close(spectra.high_wavenumber_ratio(3 * b, b, periodic), torch.full((2,), 9.0, dtype=torch.float64))


def test_flicker_along_either_axis_is_high_wavenumber() -> None:
    b = smoothed(smoothed(gaussian(0, 20, 1, 16, 16)))
    flicker = (-1.0) ** torch.arange(16)
    for pattern in (flicker[:, None], flicker[None, :]):
        assert spectra.high_wavenumber_ratio(b + 0.3 * pattern, b, (False, True)) > 2


def test_a_ramp_is_not_high_wavenumber_on_an_axis_that_is_not_periodic() -> None:
    """Without the window, the jump between the ends of the axis would be energy at every wavenumber."""
    ramp = torch.linspace(-1, 1, 32, dtype=torch.float64)[:, None] * gaussian(0, 40, 1, 1, 32)
    raw, windowed = spectra.spectrum(ramp, -2)[0], spectra.spectrum(ramp, -2, periodic=False)[0]
    assert windowed[8:].sum() < 1e-3 * raw[8:].sum()


def test_a_blur_is_its_transfer_function() -> None:
    """One-sided spectra along the columns are multiplied by its square; all but the smallest scales keep their power."""
    k = torch.arange(9, dtype=torch.float64)
    transfer = ((1 + torch.cos(2 * math.pi * k / 16)) / 2).square()
    torch.testing.assert_close(spectra.spectrum(blurred(REFERENCE)), transfer * spectra.spectrum(REFERENCE))


def test_a_blur_in_radial_bins() -> None:
    """Fields that vary along columns only: the radial bin k then holds (besides zeros) mode k alone, so the error is the root
    mean square over k = 1..n/2-1 of 2 log10 of the transfer function; its zero at Nyquist is cut by the power floor."""
    lines = gaussian(3, 50, 1, 1, 16).expand(-1, -1, 16, -1)
    k = torch.arange(1, 9, dtype=torch.float64)
    transfer = ((1 + torch.cos(2 * math.pi * k / 16)) / 2).square()
    power = spectra.spectrum(lines)[0, 1:] / 2
    power[-1] *= 2  # Nyquist is one mode, the others are two
    in_bin = torch.tensor([_modes_in_bin(int(i)) for i in k], dtype=torch.float64)
    mean = torch.where(k < 8, 2 * power, power) / in_bin
    floor = spectra.POWER_FLOOR * mean.max()
    decades = torch.log10((mean * transfer + floor) / (mean + floor))
    expected = decades.square().mean().sqrt().item()
    assert spectra.log_spectrum_error(blurred(lines), lines, PERIODIC) == pytest.approx(expected, rel=1e-6)


def _modes_in_bin(k: int) -> int:
    """Modes of a 16 x 16 grid whose radial wavenumber rounds to k."""
    wavenumbers = [i if i < 8 else i - 16 for i in range(16)]
    return sum(round(math.hypot(i, j)) == k for i in wavenumbers for j in wavenumbers)


def test_a_blur_in_the_high_wavenumbers_of_white_noise() -> None:
    """White noise has equal power in every mode: the ratio is the mean squared transfer over the high modes, whose sample mean over
    m = 200 fields x about 200 modes has a relative standard error of about sqrt(1 / 40 000) times the modes' spread: under 2 %."""
    white = gaussian(4, 200, 1, 16, 16)
    wavenumbers = torch.tensor([i if i < 8 else i - 16 for i in range(16)], dtype=torch.float64)
    radius = torch.hypot(wavenumbers[:, None], wavenumbers[None, :]) / 8
    transfer = ((1 + torch.cos(2 * math.pi * wavenumbers / 16)) / 2).square().expand(16, 16)
    expected = transfer[radius > 0.5].mean().item()
    assert spectra.high_wavenumber_ratio(blurred(white), white, PERIODIC)[0].item() == pytest.approx(expected, rel=0.02)
