"""Spectra of sample sets, and fidelity by spectra.

Sets are fields (n, c, h, w) in physical units. An axis that is not periodic is multiplied by a Hann window first.
"""

import torch

BLOCK = 512
"""Number of samples whose transforms are in memory at once."""
POWER_FLOOR = 1e-12
"""Power, relative to the reference's largest, below which the spectrum of float32 fields is rounding."""
Periodic = tuple[bool, bool]
"""Whether (rows, columns) are periodic."""


def spectrum(fields: torch.Tensor, axis: int = -1, *, periodic: bool = True) -> torch.Tensor:
    """Return the mean power (c, size//2 + 1) of wavenumbers k = 0..size//2 along one axis of fields (n, c, h, w), units^2.

    The spectrum is one-sided: its sum over k is the mean square of the (windowed) fields.
    """
    lines = fields.double().movedim(axis, -1)
    size = lines.shape[-1]
    window = _window(size, periodic).to(fields.device)
    power = torch.fft.rfft(lines * window, norm="forward").abs().square().mean((0, 2))
    k = torch.arange(size // 2 + 1, device=fields.device)
    return torch.where((k == 0) | (2 * k == size), power, 2 * power)


def log_spectrum_error(a: torch.Tensor, b: torch.Tensor, periodic: Periodic = (True, True)) -> float:
    """Return the root mean square of log10(P_a / P_b) over wavenumber bins and channels, decades; see ``log_spectrum_errors``."""
    return log_spectrum_errors(a, b, periodic).square().mean().sqrt().item()


def log_spectrum_errors(a: torch.Tensor, b: torch.Tensor, periodic: Periodic = (True, True)) -> torch.Tensor:
    """Return the root mean square (c,) of log10(P_a / P_b) over wavenumber bins of each channel, decades.

    P is the mean power in radial bins of unit width up to Nyquist, without k = 0. POWER_FLOOR times the largest bin of the
    reference b is added to both powers.
    """
    power_a, power_b = (_radial_bins(_power(fields, periodic)) for fields in (a, b))
    floor = POWER_FLOOR * power_b.amax(1, keepdim=True)
    return torch.log10((power_a + floor) / (power_b + floor)).square().mean(1).sqrt()


def high_wavenumber_ratio(a: torch.Tensor, b: torch.Tensor, periodic: Periodic = (True, True)) -> torch.Tensor:
    """Return the energy of a over the energy of b (c,) in modes with a radial wavenumber above half of Nyquist."""
    power_a, power_b = _power(a, periodic), _power(b, periodic)
    high = _radius(*power_a.shape[1:]).to(power_a.device) > 0.5
    floor = POWER_FLOOR * power_b.sum((1, 2))
    return (power_a[:, high].sum(1) + floor) / (power_b[:, high].sum(1) + floor)


def _window(size: int, periodic: bool) -> torch.Tensor:
    """Return ones for a periodic axis, otherwise a Hann window with mean square 1, (size,)."""
    if periodic:
        return torch.ones(size, dtype=torch.float64)
    window = torch.hann_window(size, dtype=torch.float64)
    return window / window.square().mean().sqrt()


def _power(fields: torch.Tensor, periodic: Periodic) -> torch.Tensor:
    """Return the mean power (c, h, w) of each mode over samples."""
    h, w = fields.shape[-2:]
    window = (_window(h, periodic[0])[:, None] * _window(w, periodic[1])).to(fields.device)
    total = torch.zeros(fields.shape[1:], dtype=torch.float64, device=fields.device)
    for block in torch.split(fields, BLOCK):
        total += torch.fft.fft2(block.double() * window, norm="forward").abs().square().sum(0)
    return total / len(fields)


def _radius(h: int, w: int) -> torch.Tensor:
    """Return the radial wavenumber (h, w) of each mode in units of Nyquist."""
    rows, columns = (2 * torch.fft.fftfreq(size, dtype=torch.float64) for size in (h, w))
    return torch.hypot(rows[:, None], columns)


def _radial_bins(power: torch.Tensor) -> torch.Tensor:
    """Return the mean power (c, min(h, w)//2) in radial bins k = 1..Nyquist of power (c, h, w)."""
    h, w = power.shape[1:]
    nyquist = min(h, w) // 2
    bins = (_radius(h, w) * nyquist).round().long().flatten().to(power.device)
    total = torch.zeros((len(power), int(bins.max()) + 1), dtype=power.dtype, device=power.device)
    total.index_add_(1, bins, power.flatten(1))
    return (total / torch.bincount(bins))[:, 1 : nyquist + 1]
