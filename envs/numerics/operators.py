"""Derivatives on uniform grids: spectral on periodic axes, finite differences with a stated boundary elsewhere."""

import torch
import torch.nn.functional as F


def wavenumbers(size: int, extent: float, like: torch.Tensor) -> torch.Tensor:
    """Return the angular wavenumbers 2 pi k / extent (size//2 + 1,) of ``rfft``, of the type and device of ``like``."""
    k = torch.arange(size // 2 + 1, dtype=like.dtype, device=like.device)
    angular: torch.Tensor = 2 * torch.pi * k / extent
    return angular


def spectral_derivative(u: torch.Tensor, extent: float, order: int = 1) -> torch.Tensor:
    """Return d^order u / dx^order along the last axis, which is periodic.

    Odd orders drop the Nyquist mode, whose derivative has no sign.
    """
    size = u.shape[-1]
    factor = (1j * wavenumbers(size, extent, u)) ** order
    if order % 2 and size % 2 == 0:
        factor[-1] = 0
    derivative: torch.Tensor = torch.fft.irfft(torch.fft.rfft(u) * factor, n=size)
    return derivative


def zero_pad_spectrum(spectrum: torch.Tensor, size: int, padded: int) -> torch.Tensor:
    """Return the ``rfft`` coefficients on ``padded`` points of the interpolant through ``size`` grid values.

    The coarse grid's Nyquist coefficient is shared between +k and -k. The interpolant is real and passes through every grid
    value, so no mode of the coarse grid is lost.
    """
    if padded <= size:
        raise ValueError(f"padded size must exceed {size}, got {padded}")
    scaled = spectrum * (padded / size)
    if size % 2 == 0:
        scaled = torch.cat([scaled[..., :-1], 0.5 * scaled[..., -1:]], dim=-1)
    return F.pad(scaled, (0, padded // 2 + 1 - scaled.shape[-1]))


def central_difference_replicate(u: torch.Tensor, spacing: float, dim: int) -> torch.Tensor:
    """Return (u_{i+1} - u_{i-1}) / 2h of u (b, c, h, w) along ``dim`` -1 or -2, with replicated edges.

    Replication sets the slope at the edge to zero, which is of first order.
    """
    padded = F.pad(u, (1, 1, 0, 0) if dim == -1 else (0, 0, 1, 1), mode="replicate")
    size = u.shape[dim]
    return (padded.narrow(dim, 2, size) - padded.narrow(dim, 0, size)) / (2 * spacing)


def five_point_laplacian(u: torch.Tensor, spacing: tuple[float, float]) -> torch.Tensor:
    """Return the Laplacian of u (..., h, w) on the interior points (..., h-2, w-2). The order is 2."""
    rows = u[..., 2:, 1:-1] - 2 * u[..., 1:-1, 1:-1] + u[..., :-2, 1:-1]
    columns = u[..., 1:-1, 2:] - 2 * u[..., 1:-1, 1:-1] + u[..., 1:-1, :-2]
    return rows / spacing[0] ** 2 + columns / spacing[1] ** 2


def nine_point_laplacian(u: torch.Tensor, spacing: tuple[float, float]) -> torch.Tensor:
    """Return lap5 u + (h^2/6) u_xxyy on the interior of a square grid (..., h-2, w-2).

    Against the source (1 + h^2/12 lap) f the order is 4.
    """

    def second(v: torch.Tensor, dim: int) -> torch.Tensor:
        size = v.shape[dim]
        return (v.narrow(dim, 2, size - 2) - 2 * v.narrow(dim, 1, size - 2) + v.narrow(dim, 0, size - 2)) / spacing[dim] ** 2

    return five_point_laplacian(u, spacing) + spacing[0] ** 2 / 6 * second(second(u, -1), -2)
