"""Exact answers for a Gaussian law and a reward that is the log-likelihood of linear observations.

    r(x) = -|y - H x|^2 / (2 s^2)

The laws that methods claim, their moments and their errors. ``pirf_ray.metrics.exact_chains`` has the optima of chains.
All tensors are float64. Fields are flat: d is channels times cells. H is (k, d), y is (k,), s is the noise.
"""

import math
from dataclasses import dataclass

import torch

from envs.numerics.gaussian import GaussianLaw


@dataclass(frozen=True, kw_only=True, eq=False)
class Gaussian:
    """Law N(mean, covariance) of flat fields."""

    mean: torch.Tensor
    """Mean (d,), float64."""
    covariance: torch.Tensor
    """Covariance (d, d), float64."""

    def __post_init__(self) -> None:
        if self.mean.ndim != 1 or self.covariance.shape != 2 * self.mean.shape:
            shapes = f"{tuple(self.mean.shape)} and {tuple(self.covariance.shape)}"
            raise ValueError(f"mean and covariance must be (d,) and (d, d), got {shapes}")


def dense(law: GaussianLaw, modes: torch.Tensor) -> torch.Tensor:
    """Return the matrix (d, d), float64, that multiplies the modes of a flat field by ``modes`` (c, h, w)."""
    d = modes.numel()
    unit = torch.eye(d, dtype=torch.float64).reshape(d, *modes.shape)
    return law.basis.to_fields(law.basis.to_modes(unit) * modes.double()).reshape(d, d).mT


def noised(law: GaussianLaw, sigma: float = 0.0) -> Gaussian:
    """Return N(mean, C + sigma^2), the law of the states at sigma. 0 gives the law of the fields."""
    return Gaussian(mean=law.mean.double().flatten(), covariance=dense(law, law.variance.double() + sigma**2))


def white(dimensions: int, sigma: float) -> Gaussian:
    """Return N(0, sigma^2), the start law of a sampler that begins with noise only."""
    eye = torch.eye(dimensions, dtype=torch.float64)
    return Gaussian(mean=torch.zeros(dimensions, dtype=torch.float64), covariance=sigma**2 * eye)


def moments(samples: torch.Tensor) -> Gaussian:
    """Return the sample mean and the unbiased sample covariance of fields (n, ...). ValueError if n < 2."""
    if len(samples) < 2:
        raise ValueError(f"a covariance needs at least 2 samples, got {len(samples)}")
    flat = samples.detach().double().cpu().flatten(1)
    return Gaussian(mean=flat.mean(0), covariance=torch.cov(flat.mT).reshape(flat.shape[1], flat.shape[1]))


def tilt(prior: Gaussian, H: torch.Tensor, y: torch.Tensor, noise: float, beta: float = 1.0) -> Gaussian:
    """Return the law proportional to prior(x) exp(r(x)/beta). The prior covariance C may be singular.

        G = C H^T (H C H^T + beta s^2)^-1,   mean + G (y - H mean),   C - G H C

    With beta = 1 it is the posterior of the fields given the observations. ValueError unless noise and beta are positive.
    """
    check_reward(prior.mean, H, y, noise, beta)
    cross = prior.covariance @ H.mT
    eye = torch.eye(len(y), dtype=torch.float64)
    gain = torch.linalg.solve(H @ cross + beta * noise**2 * eye, cross.mT).mT
    return Gaussian(mean=prior.mean + gain @ (y - H @ prior.mean), covariance=symmetric(prior.covariance - gain @ cross.mT))


def expected_reward(law: Gaussian, H: torch.Tensor, y: torch.Tensor, noise: float) -> torch.Tensor:
    """Return E[r(x)], a scalar: -(|y - H mean|^2 + tr(H C H^T)) / (2 s^2)."""
    misfit = (y - H @ law.mean).square().sum() + (H @ law.covariance @ H.mT).trace()
    return -misfit / (2 * noise**2)


def reward_std(law: Gaussian, H: torch.Tensor, y: torch.Tensor, noise: float) -> torch.Tensor:
    """Return the standard deviation of r(x), a scalar.

    With u = y - H mean and S = H C H^T:   Var r = (2 tr(S^2) + 4 u^T S u) / (4 s^4)
    """
    u, S = y - H @ law.mean, H @ law.covariance @ H.mT
    return ((2 * (S @ S).trace() + 4 * u @ S @ u) / (4 * noise**4)).sqrt()


def mean_error(result: Gaussian | torch.Tensor, target: Gaussian) -> float:
    """Return |mean - mean*| / |mean*| of a law or of samples (n, ...). ValueError if the target mean is 0."""
    return float((_law(result, target).mean - target.mean).norm()) / _scale(target)


def covariance_error(result: Gaussian | torch.Tensor, target: Gaussian) -> float:
    """Return |C - C*| / |C*| in Frobenius norm, of a law or of samples (n, ...)."""
    difference = _law(result, target).covariance - target.covariance
    return float(difference.norm() / target.covariance.norm())


def errors(result: Gaussian | torch.Tensor, target: Gaussian) -> tuple[float, float]:
    """Return (m, c), the errors ``mean_error`` and ``covariance_error`` of a law or of samples (n, ...)."""
    return mean_error(result, target), covariance_error(result, target)


def sampling_floor(target: Gaussian, samples: int) -> tuple[float, float]:
    """Return the root mean square of (m, c) over sets of ``samples`` independent draws of the target itself.

    E|mean - mean*|^2 = tr(C) / n,   E|C_n - C|^2 = (|C|^2 + tr(C)^2) / (n - 1)

    ValueError if the target mean is 0.
    """
    trace, norm = target.covariance.trace().item(), target.covariance.norm().item()
    mean = math.sqrt(trace / samples) / _scale(target)
    return mean, math.sqrt((1 + (trace / norm) ** 2) / (samples - 1))


def observed_variance(result: Gaussian | torch.Tensor, target: Gaussian, H: torch.Tensor) -> float:
    """Return tr(H C H^T) / tr(H C* H^T), of a law or of samples (n, ...). 1 is right."""
    covariance = _law(result, target).covariance
    return ((H @ covariance @ H.mT).trace() / (H @ target.covariance @ H.mT).trace()).item()


def symmetric(matrix: torch.Tensor) -> torch.Tensor:
    """Return (M + M^T) / 2."""
    return (matrix + matrix.mT) / 2


def check_reward(mean: torch.Tensor, H: torch.Tensor, y: torch.Tensor, noise: float, beta: float) -> None:
    """Raise ValueError unless H is (k, d), y is (k,), and noise and beta are positive."""
    if y.ndim != 1 or H.shape != (len(y), len(mean)):
        raise ValueError(f"H must be (k, {len(mean)}) and y (k,), got {tuple(H.shape)} and {tuple(y.shape)}")
    if not (noise > 0 and beta > 0):
        raise ValueError(f"noise and beta must be positive, got {noise} and {beta}")


def _scale(target: Gaussian) -> float:
    scale = float(target.mean.norm())
    if not scale > 0:
        raise ValueError("the mean of the target is 0: its relative error is not defined")
    return scale


def _law(result: Gaussian | torch.Tensor, target: Gaussian) -> Gaussian:
    law = result if isinstance(result, Gaussian) else moments(result)
    if law.mean.shape != target.mean.shape:
        raise ValueError(f"expected fields of {len(target.mean)} numbers as in the target, got {len(law.mean)}")
    return law
