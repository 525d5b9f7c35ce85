"""Exact chains: a sampler with a Gaussian law is affine, so its law and its optimum under a quadratic reward are known.

    x' = F_i x + g_i + N(0, Q_i),   r(x_0) = -|y - H x_0|^2 / (2 s^2)

Fine-tuning with a fixed step covariance is a linear-quadratic problem. Its optimum is the solution of a Riccati recursion, not
the tilt p(x) exp(r/beta)/Z. Both agree in the mean, and in the covariance only as N grows. So an objective is graded against
the optimum of the chain that it trains.
"""

from dataclasses import dataclass, replace

import torch

from envs.denoising import DenoisingProcess
from envs.numerics.gaussian import GaussianLaw
from envs.transitions import step_coefficients
from pirf_ray.metrics.exact import Gaussian, check_reward, dense, reward_std, symmetric


@dataclass(frozen=True, kw_only=True, eq=False)
class Chain:
    """N affine Gaussian steps of a sampler, in flat fields, float64."""

    gains: torch.Tensor
    """F (N, d, d)."""
    shifts: torch.Tensor
    """g (N, d)."""
    covariances: torch.Tensor
    """Q (N, d, d). It is 0 in deterministic steps, such as the step to sigma = 0."""
    weights: tuple[float, ...]
    """Weight a of the old error in each step: its mean is D + a (x - D)."""

    @property
    def stochastic_steps(self) -> list[int]:
        """Return the steps that have a density."""
        return [i for i, Q in enumerate(self.covariances) if Q.any()]

    def predictions(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (M, v), (N, d, d) and (N, d): the denoiser D_i(x) = M_i x + v_i of each step. F = (1 - a) M + a, g = (1 - a) v."""
        a = torch.tensor(self.weights, dtype=torch.float64)[:, None]
        eye = torch.eye(self.shifts.shape[1], dtype=torch.float64)
        return (self.gains - a[..., None] * eye) / (1 - a[..., None]), self.shifts / (1 - a)


def base_chain(process: DenoisingProcess, law: GaussianLaw) -> Chain:
    """Return the chain of the process with the exact denoiser of ``law``. The law of the process completes its steps, if it has one.

    ValueError if the solver is neither stochastic nor euler: the other solvers have no affine step of one evaluation.
    """
    if process.solver not in ("stochastic", "euler"):
        raise ValueError(f"the solver of an exact chain must be stochastic or euler, got {process.solver}")
    steps = [_base_step(process, law, i) for i in range(process.num_steps)]
    gains, shifts, covariances, weights = zip(*steps, strict=True)
    return Chain(gains=torch.stack(gains), shifts=torch.stack(shifts), covariances=torch.stack(covariances), weights=weights)


def _base_step(process: DenoisingProcess, law: GaussianLaw, step: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, float]:
    """Return (F, g, Q, a) of a step: the mean is D + a (x - D) with D = K x + (1 - K) mean, K = C (C + sigma^2)^-1."""
    sigma, sigma_next = process.sigmas[step], process.sigmas[step + 1]
    variance, mean = law.variance.double(), law.mean.double().flatten()
    c, a = step_coefficients(sigma, sigma_next, process.eta) if process.has_density(step) else (0.0, sigma_next / sigma)
    shrink = variance / (variance + sigma**2)
    missing = torch.zeros_like(variance)
    if process.law is not None and process.has_density(step):
        missing = (1 - a) ** 2 * process.law.denoised_variance(sigma).double()
    shift = (1 - a) * (mean - dense(law, shrink) @ mean)
    return dense(law, (1 - a) * shrink + a), shift, dense(process.law or law, c**2 + missing), a


def marginals(chain: Chain, start: Gaussian) -> list[Gaussian]:
    """Return the N + 1 laws of the states from the start to the finished fields: F mean + g, F C F^T + Q."""
    laws = [start]
    for F, g, Q in zip(chain.gains, chain.shifts, chain.covariances, strict=True):
        law = laws[-1]
        laws.append(Gaussian(mean=F @ law.mean + g, covariance=symmetric(F @ law.covariance @ F.mT) + Q))
    return laws


def propagate(chain: Chain, start: Gaussian) -> Gaussian:
    """Return the exact law of the finished fields."""
    return marginals(chain, start)[-1]


def path_kl(chain: Chain, base: Chain, start: Gaussian) -> torch.Tensor:
    """Return E[KL(p_i | base_i)] (N,) of each step, the states drawn from ``chain``. Both chains must have the same Q.

    KL = |mean - mean_base|^2 / 2 in the norm of Q^-1. A deterministic step has none; its entry is 0.
    """
    states = marginals(chain, start)
    kl = [torch.zeros((), dtype=torch.float64) for _ in chain.gains]
    for i in base.stochastic_steps:
        gain, shift = chain.gains[i] - base.gains[i], chain.shifts[i] - base.shifts[i]
        change = gain @ states[i].mean + shift
        second_moment = gain @ states[i].covariance @ gain.mT + torch.outer(change, change)
        kl[i] = torch.linalg.solve(base.covariances[i], second_moment).trace() / 2
    return torch.stack(kl)


def riccati(
    base: Chain, H: torch.Tensor, y: torch.Tensor, noise: float, beta: float = 1.0, *, controlled: int | None = None
) -> Chain:
    """Return the chain with the largest E[r(x_0)] - beta sum_i E[KL(p_i | base_i)] among the chains with the same Q.

    The value of a state is V(x) = q^T x - x^T P x / 2 + const, backward from P = H^T H / s^2, q = H^T y / s^2:

        W = (1 + Q P / beta)^-1,   F' = W F,   g' = W (g + Q q / beta),   P <- F^T P F',   q <- F^T (q - P g')

    Deterministic steps keep F and g. ``controlled``: number of last stochastic steps that may change, None for all (late
    control). ValueError if H, y, noise, beta or ``controlled`` is not allowed.
    """
    return _optimum(base, H, y, noise, beta, controlled, future_kl=True)


def riccati_without_future_kl(
    base: Chain, H: torch.Tensor, y: torch.Tensor, noise: float, beta: float = 1.0, *, controlled: int | None = None
) -> Chain:
    """Return the fixed point of a policy gradient whose KL is a loss per step that does not follow the states (GRPO).

    Each step has the largest E[V(x')] - beta KL(p_i | base_i), where V is the expected reward under the later steps, without
    their KL. It is the recursion of ``riccati`` with F'^T instead of F^T on the left of P and q.
    """
    return _optimum(base, H, y, noise, beta, controlled, future_kl=False)


def standardized_fixed_point(
    base: Chain, start: Gaussian, H: torch.Tensor, y: torch.Tensor, noise: float, beta: float = 1.0
) -> tuple[Chain, float]:
    """Return the fixed point of GRPO as published, and the standard deviation of its rewards.

    Advantages (r - mean)/std over one large group and a detached KL per step act as beta' = beta std(r). The std is that of the
    policy itself, so beta' is iterated from the base chain's std. RuntimeError if 500 iterations do not converge.
    """
    std = reward_std(propagate(base, start), H, y, noise).item()
    for _ in range(500):
        chain = riccati_without_future_kl(base, H, y, noise, beta * std)
        new = reward_std(propagate(chain, start), H, y, noise).item()
        if abs(new - std) <= 1e-9 * std:
            return chain, new
        std = new
    raise RuntimeError(f"the std of the rewards did not converge: {std} after 500 iterations")


def _optimum(
    base: Chain, H: torch.Tensor, y: torch.Tensor, noise: float, beta: float, controlled: int | None, *, future_kl: bool
) -> Chain:
    check_reward(base.shifts[0], H, y, noise, beta)
    free = _last(base.stochastic_steps, controlled)
    gains, shifts = base.gains.clone(), base.shifts.clone()
    P, q = H.mT @ H / noise**2, H.mT @ y / noise**2
    for i in reversed(range(len(gains))):
        F, Q = base.gains[i], base.covariances[i]
        if i in free:
            system = torch.eye(len(q), dtype=torch.float64) + Q @ P / beta
            gains[i] = torch.linalg.solve(system, F)
            shifts[i] = torch.linalg.solve(system, base.shifts[i] + Q @ q / beta)
        left = (F if future_kl else gains[i]).mT
        P, q = symmetric(left @ P @ gains[i]), left @ (q - P @ shifts[i])
    return replace(base, gains=gains, shifts=shifts)


def _last(steps: list[int], count: int | None) -> set[int]:
    if count is None:
        return set(steps)
    if not 0 <= count <= len(steps):
        raise ValueError(f"controlled must be in [0, {len(steps)}], the stochastic steps of the chain, got {count}")
    return set(steps[len(steps) - count :])
