"""Fields that tests of PDEs share: noise, grid points and Fourier modes."""

import torch


def noise_like(fields: torch.Tensor, seed: int = 0) -> torch.Tensor:
    """Standard normal noise of the shape and type of the fields."""
    return torch.randn(fields.shape, dtype=fields.dtype, generator=torch.Generator().manual_seed(seed))


def coordinates(points: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return y (along the rows) and x (along the columns) of a periodic grid of [0, 2 pi)^2."""
    angle = torch.arange(points, dtype=torch.float64) * (2 * torch.pi / points)
    return angle[:, None].expand(points, points), angle[None, :].expand(points, points)


def grid_modes(n: int) -> tuple[torch.Tensor, list[tuple[str, str]]]:
    """Return every real 2-D Fourier mode of an n x n grid at unit root mean square, (n^2, n, n), and its factors."""
    angle = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    basis, names = [torch.ones(n, dtype=torch.float64)], ["0"]
    for k in range(1, n // 2):
        basis += [2**0.5 * torch.cos(k * angle), 2**0.5 * torch.sin(k * angle)]
        names += [f"cos{k}", f"sin{k}"]
    rows, names = torch.stack([*basis, torch.cos(n // 2 * angle)]), [*names, "nyquist"]
    modes = rows[:, None, :, None] * rows[None, :, None, :]
    return modes.reshape(n * n, n, n), [(a, b) for a in names for b in names]
