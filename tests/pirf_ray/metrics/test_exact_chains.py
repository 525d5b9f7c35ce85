"""Exact chains: propagation against samples, and the optima against direct optimization."""

from dataclasses import replace

import pytest
import torch

from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from envs.numerics.gaussian import GaussianLaw, cosine_basis
from gaussian_problem import problem
from pirf_ray.metrics.exact import Gaussian, errors, expected_reward, noised, reward_std, sampling_floor, tilt, white
from pirf_ray.metrics.exact_chains import (
    Chain,
    base_chain,
    marginals,
    path_kl,
    propagate,
    riccati,
    riccati_without_future_kl,
    standardized_fixed_point,
)

PROBLEM = problem()
TILT = tilt(PROBLEM.prior, *PROBLEM.reward)
SMALL = GaussianLaw(
    mean=torch.tensor([[[0.3, -0.2, 0.1]]], dtype=torch.float64),
    variance=torch.tensor([[[1.0, 0.5, 0.1]]], dtype=torch.float64),
    basis=cosine_basis(1, 3),
)
H = torch.tensor([[1.0, 0.0, 0.5], [0.0, 1.0, 0.0]], dtype=torch.float64)
Y = torch.tensor([0.9, -0.6], dtype=torch.float64)
NOISE, BETA = 0.5, 1.5


def small(*, eta: float = 1.0, law: GaussianLaw | None = SMALL, num_steps: int = 3) -> tuple[Chain, Gaussian]:
    """Return the base chain and the start of three steps in three dimensions."""
    process = DenoisingProcess(num_steps, "stochastic", eta=eta, law=law, sigma_max=3.0, sigma_min=0.3)
    return base_chain(process, SMALL), white(3, 3.0)


def solved(num_steps: int = 10, *, eta: float = 1.0, complete: bool = True) -> tuple[Chain, Gaussian]:
    """Return the base chain of the problem and its start."""
    process = PROBLEM.process(num_steps, eta=eta, complete=complete)
    return base_chain(process, PROBLEM.law), PROBLEM.start(process)


def sampled(process: DenoisingProcess, law: GaussianLaw, n: int) -> torch.Tensor:
    """Return n fields of the process with the exact denoiser of the law."""
    noise = seeding.NoiseStream(0, "test_exact_chains", range(n))
    state = process.initial(noise.draw(tuple(law.mean.shape)))
    while not process.terminal(state):
        x, sigma = process.observe(state)
        state = process.transition(state, law.denoised(x, sigma), noise.draw(tuple(law.mean.shape)))
    return state.x


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("complete", [True, False])
def test_propagation_agrees_with_samples_of_the_process(eta: float, complete: bool) -> None:
    """The errors of m and c are at most twice the root mean square of 4,096 independent draws.

    The squared error is a sum of at least three comparable chi-square terms, and exceeds four times its mean in 1 of 100 cases.
    """
    law = SMALL if complete else None
    process = DenoisingProcess(3, "stochastic", eta=eta, law=law, sigma_max=3.0, sigma_min=0.3)
    exact = propagate(base_chain(process, SMALL), white(3, 3.0))
    m, c = errors(sampled(process, SMALL, 4096), exact)
    floor = sampling_floor(exact, 4096)
    assert m < 2 * floor[0] and c < 2 * floor[1]


@pytest.mark.parametrize("eta", [1.0, 0.5])
@pytest.mark.parametrize("num_steps", [3, 10])
def test_missing_covariance_makes_the_chain_exact_at_any_number_of_steps(eta: float, num_steps: int) -> None:
    """From the noised law each state has the noised law of its sigma, up to rounding. The end has the law of D at sigma_min."""
    process = DenoisingProcess(num_steps, "stochastic", eta=eta, law=SMALL, sigma_max=3.0, sigma_min=0.3)
    states = marginals(base_chain(process, SMALL), noised(SMALL, 3.0))
    for state, sigma in zip(states[:-1], process.sigmas[:-1], strict=True):
        torch.testing.assert_close(state.mean, noised(SMALL).mean, rtol=0, atol=1e-12)
        torch.testing.assert_close(state.covariance, noised(SMALL, sigma).covariance, rtol=1e-10, atol=1e-12)


def test_plain_steps_end_with_too_little_variance() -> None:
    """The range at 20 and 200 steps of EDM's schedule is the shared measurement (SCIENCE.md 5); the completed chain has 1."""
    share = {}
    for n in (20, 200):
        for complete in (False, True):
            end = propagate(*solved(n, complete=complete))
            share[n, complete] = (end.covariance.trace() / PROBLEM.prior.covariance.trace()).item()
    assert 0.41 < share[20, False] < 0.64 and 0.87 < share[200, False] < 0.95
    assert share[20, True] == pytest.approx(1, abs=1e-3)


def test_euler_chain_is_the_deterministic_sampler() -> None:
    process = DenoisingProcess(4, "euler", sigma_max=3.0, sigma_min=0.3)
    chain, x = base_chain(process, SMALL), torch.tensor([[[[1.0, 2.0, -1.0]]]], dtype=torch.float64)
    state, flat = process.initial(x), 3.0 * x.flatten()
    while not process.terminal(state):
        flat = chain.gains[state.step] @ flat + chain.shifts[state.step]
        state = process.transition(state, SMALL.denoised(state.x, process.sigmas[state.step]))
    torch.testing.assert_close(flat, state.x.flatten(), rtol=1e-12, atol=1e-12)
    assert chain.stochastic_steps == []
    torch.testing.assert_close(riccati(chain, H, Y, NOISE).gains, chain.gains)


def test_predictions_are_the_denoiser_of_each_step() -> None:
    for eta in (1.0, 0.5):
        process = DenoisingProcess(3, "stochastic", eta=eta, law=SMALL, sigma_max=3.0, sigma_min=0.3)
        matrices, offsets = base_chain(process, SMALL).predictions()
        x = torch.tensor([1.0, 2.0, -1.0], dtype=torch.float64)
        for matrix, offset, sigma in zip(matrices, offsets, process.sigmas[:-1], strict=True):
            denoised = SMALL.denoised(x.reshape(1, 1, 1, 3), sigma).flatten()
            torch.testing.assert_close(matrix @ x + offset, denoised, rtol=1e-10, atol=1e-12)


def objective(chain: Chain, base: Chain, start: Gaussian) -> torch.Tensor:
    return expected_reward(propagate(chain, start), H, Y, NOISE) - BETA * path_kl(chain, base, start).sum()


def detached_objective(chain: Chain, base: Chain, start: Gaussian) -> torch.Tensor:
    """Return the reward minus a KL per step whose states carry no gradient: its gradient is GRPO's."""
    kl = torch.zeros((), dtype=torch.float64)
    states = [Gaussian(mean=s.mean.detach(), covariance=s.covariance.detach()) for s in marginals(chain, start)]
    for i in base.stochastic_steps:
        one = Chain(**{k: getattr(chain, k)[i : i + 1] for k in ("gains", "shifts", "covariances", "weights")})
        one_base = Chain(**{k: getattr(base, k)[i : i + 1] for k in ("gains", "shifts", "covariances", "weights")})
        kl = kl + path_kl(one, one_base, states[i]).sum()
    return expected_reward(propagate(chain, start), H, Y, NOISE) - BETA * kl


def gradient(function, chain: Chain, base: Chain, start: Gaussian) -> float:  # type: ignore[no-untyped-def]
    """Return the largest gradient of the function in the gains and shifts of the stochastic steps."""
    gains, shifts = chain.gains.clone().requires_grad_(), chain.shifts.clone().requires_grad_()
    found = torch.autograd.grad(function(replace(chain, gains=gains, shifts=shifts), base, start), (gains, shifts))
    steps = base.stochastic_steps
    return max(g[steps].abs().max().item() for g in found)


@pytest.mark.parametrize("eta", [1.0, 0.5])
def test_riccati_is_what_direct_ascent_on_the_exact_objective_finds(eta: float) -> None:
    """L-BFGS ends with a gradient below 1e-6. The curvature is of order 1, so the objective is within 1e-9 of its maximum."""
    base, start = small(eta=eta)
    gains, shifts = base.gains.clone().requires_grad_(), base.shifts.clone().requires_grad_()
    optimizer = torch.optim.LBFGS([gains, shifts], max_iter=500, tolerance_grad=1e-8, line_search_fn="strong_wolfe")
    last = torch.zeros(3, 1, dtype=torch.float64)
    last[base.stochastic_steps] = 1.0  # the step to sigma = 0 is frozen

    def chain() -> Chain:
        free = last[..., None]
        return replace(base, gains=free * gains + (1 - free) * base.gains, shifts=last * shifts + (1 - last) * base.shifts)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = -objective(chain(), base, start)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    exact = riccati(base, H, Y, NOISE, BETA)
    assert objective(chain(), base, start).item() == pytest.approx(objective(exact, base, start).item(), abs=1e-8)
    torch.testing.assert_close(chain().gains.detach(), exact.gains, rtol=0, atol=1e-3)
    torch.testing.assert_close(chain().shifts.detach(), exact.shifts, rtol=0, atol=1e-3)


def test_each_recursion_is_stationary_in_its_own_objective_only() -> None:
    base, start = small()
    exact, detached = riccati(base, H, Y, NOISE, BETA), riccati_without_future_kl(base, H, Y, NOISE, BETA)
    assert gradient(objective, exact, base, start) < 1e-9
    assert gradient(detached_objective, detached, base, start) < 1e-9
    assert gradient(objective, detached, base, start) > 1e-3
    assert gradient(detached_objective, exact, base, start) > 1e-3
    assert objective(exact, base, start) > objective(detached, base, start) > objective(base, base, start)


def test_riccati_has_the_mean_of_the_tilt_and_its_covariance_only_in_the_limit() -> None:
    """The bounds enclose the shared measurement (SCIENCE.md 5): .40, .16 and .06 at 10, 20 and 50 steps, within a third."""
    found = {
        n: errors(propagate(riccati(base, *PROBLEM.reward), start), TILT) for n in (10, 20, 50) for base, start in [solved(n)]
    }
    assert all(m < 3e-3 for m, _ in found.values())
    assert [found[n][1] for n in (10, 20, 50)] == pytest.approx([0.40, 0.16, 0.06], rel=0.33)


def test_chain_that_remembers_its_first_noise_keeps_a_bias() -> None:
    bias = []
    for eta in (1.0, 0.7, 0.3):
        base, start = solved(eta=eta)
        bias.append(errors(propagate(riccati(base, *PROBLEM.reward), start), TILT)[0])
    assert bias[0] < 1e-3 < 1e-2 < bias[1] < 5e-2 < 1e-1 < bias[2]


def test_late_control_cannot_move_the_mean() -> None:
    """The shared measurement (SCIENCE.md 5) is .98, .91 and .39 for 1, 2 and 4 controlled stochastic steps, within .1."""
    base, start = solved()
    late = [errors(propagate(riccati(base, *PROBLEM.reward, controlled=k), start), TILT)[0] for k in (1, 2, 4)]
    assert late == pytest.approx([0.98, 0.91, 0.39], abs=0.1)
    whole = riccati(base, *PROBLEM.reward)
    torch.testing.assert_close(riccati(base, *PROBLEM.reward, controlled=9).gains, whole.gains)
    torch.testing.assert_close(riccati(base, *PROBLEM.reward, controlled=4).gains[5:], whole.gains[5:])
    torch.testing.assert_close(riccati(base, *PROBLEM.reward, controlled=0).gains, base.gains)


def test_detached_kl_misses_the_riccati_optimum() -> None:
    """The shared measurement of its mean error is .155 (SCIENCE.md 5), which the tests of objectives must tell from 0."""
    base, start = solved()
    target = propagate(riccati(base, *PROBLEM.reward), start)
    m, _ = errors(propagate(riccati_without_future_kl(base, *PROBLEM.reward), start), target)
    assert 0.14 < m < 0.22


def test_standardized_rewards_act_as_a_larger_beta() -> None:
    base, start = solved()
    chain, std = standardized_fixed_point(base, start, *PROBLEM.reward)
    same = riccati_without_future_kl(base, *PROBLEM.reward, std)
    torch.testing.assert_close(chain.gains, same.gains, rtol=0, atol=1e-7)
    assert reward_std(propagate(chain, start), *PROBLEM.reward).item() == pytest.approx(std, rel=1e-8)
    assert std > 2


def test_large_beta_leaves_the_base_chain() -> None:
    base, start = small()
    law, own = propagate(riccati(base, H, Y, NOISE, 1e9), start), propagate(base, start)
    assert max(errors(law, own)) < 1e-7
    assert path_kl(base, base, start).tolist() == [0.0, 0.0, 0.0]


def test_bad_input_is_named() -> None:
    base, _ = small()
    with pytest.raises(ValueError, match=r"controlled must be in \[0, 2\], .* got 3"):
        riccati(base, H, Y, NOISE, controlled=3)
    with pytest.raises(ValueError, match="must be stochastic or euler, got heun"):
        base_chain(DenoisingProcess(3), SMALL)
    with pytest.raises(ValueError, match="noise and beta must be positive"):
        riccati_without_future_kl(base, H, Y, NOISE, -1.0)
