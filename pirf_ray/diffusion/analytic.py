"""Denoisers without a network: the exact denoiser of a Gaussian law, and an affine policy around it.

They stand where a network stands in tests and studies whose exact answer is known (pirf_ray.metrics.exact).
"""

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from envs.numerics.conditions import Condition
from envs.numerics.gaussian import GaussianLaw
from pirf_ray.diffusion.denoiser import AbstractDenoiser

TOLERANCE = 1e-6
"""Largest relative difference of two sigmas that count as equal."""


def data_std(law: GaussianLaw) -> float:
    """Return the standard deviation of an entry, averaged over entries in the square: sigma_data of the law. The mean is left out."""
    return math.sqrt(law.variance.mean().item())  # the basis is orthonormal, so modes and entries have the same total


class GaussianDenoiser(AbstractDenoiser):
    """Exact denoiser D(x; s) = mu + C (C + s^2)^-1 (x - mu) of the law N(mu, C). It has no parameters."""

    def __init__(self, law: GaussianLaw) -> None:
        super().__init__()
        self.law = law
        self.sigma_data = data_std(law)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None) -> torch.Tensor:
        """Return the denoised fields (b, c, h, w). The law reads no condition. ValueError if x has another shape than the law's."""
        _check_shape(x, self.law.mean.shape)
        if isinstance(sigma, torch.Tensor):
            sigma = sigma.to(x).reshape(-1, 1, 1, 1)
        return self.law.denoised(x, sigma)


class AffineDenoiser(AbstractDenoiser):
    """Affine policy with a matrix and an offset per sigma of the schedule. At the start it is the law's exact denoiser.

        D_i(x) = D(x; s_i) + c_out (A_i c_in x / sqrt(d) + b_i),   c_out = s_i sd / sqrt(s_i^2 + sd^2),   c_in = 1 / sqrt(s_i^2 + sd^2)

    with sd = sigma_data and x flat. The parameters A (N, d, d) and b (N, d) are 0 at the start. The policy contains the optimum
    of every chain of these sigmas. EDM's factors make a step of A or b cost about the same KL at every sigma. With
    sqrt(d), a random step of A costs about as much as one of b.
    """

    def __init__(self, law: GaussianLaw, sigmas: Sequence[float], *, dtype: torch.dtype = torch.float32) -> None:
        """Make the policy. ``sigmas``: positive sigmas of a schedule; a 0 at its end is left out. ValueError if none is left."""
        super().__init__()
        self.sigmas = [float(s) for s in sigmas if s > 0]
        if not self.sigmas:
            raise ValueError(f"sigmas must have a positive entry, got {list(sigmas)}")
        self.sigma_data, self.shape = data_std(law), tuple(law.mean.shape)
        n, d = len(self.sigmas), law.mean.numel()
        self.A = nn.Parameter(torch.zeros(n, d, d, dtype=dtype))
        self.b = nn.Parameter(torch.zeros(n, d, dtype=dtype))
        base, offsets = zip(*(_affine(law, s) for s in self.sigmas), strict=True)
        c_in = torch.tensor([1 / math.hypot(s, self.sigma_data) for s in self.sigmas], dtype=torch.float64)
        c_out = torch.tensor(self.sigmas, dtype=torch.float64) * self.sigma_data * c_in
        buffers = {
            "base": torch.stack(base),
            "offsets": torch.stack(offsets),
            "gains": c_out * c_in / math.sqrt(d),
            "steps": c_out,
        }
        for name, values in buffers.items():
            self.register_buffer(name, values.to(dtype), persistent=False)

    base: torch.Tensor
    """Matrices C (C + s_i^2)^-1 (N, d, d)."""
    offsets: torch.Tensor
    """Exact offsets D(0; s_i) (N, d)."""
    gains: torch.Tensor
    """c_out c_in / sqrt(d) (N,)."""
    steps: torch.Tensor
    """c_out (N,)."""

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float, condition: Condition | None = None) -> torch.Tensor:
        """Return the denoised fields (b, c, h, w). The policy reads no condition.

        ValueError if x has another shape than the law's, or if a sigma is not one of the schedule's.
        """
        _check_shape(x, self.shape)
        flat, steps = x.flatten(1), self._steps(sigma)
        if len(steps) not in (1, len(x)):
            raise ValueError(f"expected a sigma for each of {len(x)} samples, got {len(steps)}")
        distinct = sorted(set(steps))
        if len(distinct) == 1:
            return F.linear(flat, *self._step(distinct[0])).reshape(x.shape)
        index = torch.tensor(steps, device=x.device)
        rows = [(index == i).nonzero().flatten() for i in distinct]
        parts = [F.linear(flat[r], *self._step(i)) for r, i in zip(rows, distinct, strict=True)]
        return torch.cat(parts)[torch.cat(rows).argsort()].reshape(x.shape)

    def load_predictions(self, matrices: torch.Tensor, offsets: torch.Tensor) -> "AffineDenoiser":
        """Set A and b so that D_i(x) = matrices[i] x + offsets[i]: (N, d, d) and (N, d), as from Chain.predictions.

        ValueError if the shapes do not fit.
        """
        if matrices.shape != self.A.shape or offsets.shape != self.b.shape:
            expected, given = (self.A.shape, self.b.shape), (matrices.shape, offsets.shape)
            raise ValueError(f"expected matrices and offsets {_text(expected)}, got {_text(given)}")
        with torch.no_grad():
            self.A.copy_((matrices - self.base.to(matrices)) / self.gains.to(matrices)[:, None, None])
            self.b.copy_((offsets - self.offsets.to(offsets)) / self.steps.to(offsets)[:, None])
        return self

    def _step(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.base[i] + self.gains[i] * self.A[i], self.offsets[i] + self.steps[i] * self.b[i]

    def _steps(self, sigma: torch.Tensor | float) -> list[int]:
        given = sigma.flatten().tolist() if isinstance(sigma, torch.Tensor) else [sigma]
        found = {s: self._nearest(s) for s in set(given)}
        return [found[s] for s in given]

    def _nearest(self, sigma: float) -> int:
        nearest = min(range(len(self.sigmas)), key=lambda i: abs(self.sigmas[i] - sigma))
        if abs(self.sigmas[nearest] - sigma) <= TOLERANCE * self.sigmas[nearest]:
            return nearest
        raise ValueError(f"sigma must be one of the policy's {[round(s, 6) for s in self.sigmas]}, got {sigma}")


def _affine(law: GaussianLaw, sigma: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the matrix (d, d) and the offset (d,), float64, of the law's denoiser at sigma."""
    d = law.mean.numel()
    points = torch.cat([torch.zeros(1, d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)])
    values = law.denoised(points.reshape(d + 1, *law.mean.shape), sigma).flatten(1)
    return (values[1:] - values[0]).mT, values[0]


def _check_shape(x: torch.Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != tuple(shape):
        raise ValueError(f"expected x (b, {', '.join(map(str, shape))}), got {tuple(x.shape)}")


def _text(shapes: tuple[torch.Size, torch.Size]) -> str:
    return " and ".join(str(tuple(s)) for s in shapes)
