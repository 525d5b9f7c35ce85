"""A problem whose exact answers are known: a Gaussian law in 64 dimensions and five noisy point observations.

The law is the source law of Poisson (envs.numerics.random_fields) on an 8 x 8 grid, without its mean mode. It is scaled so that
a cell has EDM's standard deviation 0.5 on average. The noise is 0.4. More noise leaves no task. With less noise the rewards of
the base law, whose standard deviation is 7.6 here, spread so widely that a policy gradient needs long.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import torch

from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from envs.numerics.gaussian import GaussianLaw, cosine_basis
from pirf_ray.metrics.exact import Gaussian, noised, white

POINTS, OBSERVATIONS = 8, 5
STD, NOISE = 0.5, 0.4
NUM_STEPS = 10
SEED = 3
"""Its cells lie apart, so the exact optimum is far from the base law in the mean and in the covariance."""


@dataclass(frozen=True, kw_only=True, eq=False)
class GaussianProblem:
    """Law of the fields and the observations y = H x + noise."""

    law: GaussianLaw
    H: torch.Tensor
    """Operator (5, 64), float64: a row has a single 1, at the observed cell."""
    y: torch.Tensor
    """Observations (5,), float64."""
    noise: float

    @property
    def prior(self) -> Gaussian:
        """Return the law of the flat fields."""
        return noised(self.law)

    @property
    def reward(self) -> tuple[torch.Tensor, torch.Tensor, float]:
        """Return (H, y, noise), the arguments of the exact functions."""
        return self.H, self.y, self.noise

    def process(self, num_steps: int = NUM_STEPS, *, eta: float = 1.0, complete: bool = True) -> DenoisingProcess:
        """Return the stochastic process on EDM's schedule. ``complete``: with the missing covariance of its steps."""
        return DenoisingProcess(num_steps, "stochastic", eta=eta, law=self.law if complete else None)

    def start(self, process: DenoisingProcess) -> Gaussian:
        """Return the law of the first state."""
        return white(self.H.shape[1], process.sigmas[0])

    def log_likelihood(self, x: torch.Tensor) -> torch.Tensor:
        """Return r (b,) = -|y - H x|^2 / (2 s^2) of fields x (b, 1, 8, 8), without the constant."""
        misfit = self.y.to(x) - x.flatten(1) @ self.H.to(x).mT
        return -misfit.square().sum(1) / (2 * self.noise**2)


def source_law(points: int = POINTS, std: float = STD, *, alpha: float = 2.0, tau: float = 3.0) -> GaussianLaw:
    """Return N(0, C) with the spectrum of the source law and the standard deviation ``std`` of a cell on average."""
    k = torch.arange(points, dtype=torch.float64)
    variance = (math.pi**2 * (k[:, None] ** 2 + k**2) + tau**2) ** -alpha
    variance[0, 0] = 0.0
    variance *= std**2 * points**2 / variance.sum()
    return GaussianLaw(
        mean=torch.zeros(1, points, points, dtype=torch.float64), variance=variance[None], basis=cosine_basis(points, points)
    )


@lru_cache(maxsize=1)
def problem() -> GaussianProblem:
    """Return the problem. Its cells and its truth are draws of the house's own streams, the same on every machine."""
    law = source_law()
    cells = seeding.generator(SEED, "gaussian-problem/cells", 0).choice(POINTS**2, OBSERVATIONS, replace=False)
    H = torch.eye(POINTS**2, dtype=torch.float64)[torch.from_numpy(cells)]
    truth = law.draw(seeding.normal(SEED, "gaussian-problem/truth", [0], (1, POINTS, POINTS)))
    y = H @ truth.flatten() + NOISE * seeding.normal(SEED, "gaussian-problem/noise", [0], (OBSERVATIONS,))[0]
    return GaussianProblem(law=law, H=H, y=y, noise=NOISE)


def log_likelihood(x: torch.Tensor) -> torch.Tensor:
    """Return the reward (b,) of the problem for fields x (b, 1, 8, 8)."""
    return problem().log_likelihood(x)
