"""Denoisers without a network: the exact one of a Gaussian law, and the affine policy around it."""

import copy

import pytest
import torch

from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from envs.numerics.gaussian import GaussianLaw, cosine_basis
from gaussian_problem import problem
from pirf_ray.diffusion.analytic import AffineDenoiser, GaussianDenoiser
from pirf_ray.metrics.exact import errors, noised, observed_variance, sampling_floor, tilt
from pirf_ray.metrics.exact_chains import Chain, base_chain, propagate, riccati

PROBLEM = problem()
SIGMAS = PROBLEM.process().sigmas


def fields(n: int = 4) -> torch.Tensor:
    return seeding.normal(0, "test_analytic", range(n), (1, 8, 8))


def shifted_law() -> GaussianLaw:
    """Return a law of two channels with a mean."""
    noise = seeding.normal(1, "test_analytic", [0, 1, 2, 3], (2, 3))
    return GaussianLaw(mean=noise[:2], variance=noise[2:].square(), basis=cosine_basis(2, 3))


def sample(process: DenoisingProcess, denoiser: AffineDenoiser, n: int) -> torch.Tensor:
    noise = seeding.NoiseStream(0, "test_analytic/process", range(n))
    with torch.no_grad():
        state = process.initial(noise.draw((1, 8, 8)).float())
        while not process.terminal(state):
            x, sigma = process.observe(state)
            state = process.transition(state, denoiser(x, sigma), noise.draw((1, 8, 8)).float())
    return state.x


@pytest.mark.parametrize("sigma", [0.05, 2.0])
def test_gaussian_denoiser_is_the_mean_given_the_noised_field(sigma: float) -> None:
    law = shifted_law()
    x = seeding.normal(2, "test_analytic", [0], (2, 2, 3))
    eye = torch.eye(12, dtype=torch.float64)
    expected = tilt(noised(law), eye, x.flatten(), sigma).mean
    torch.testing.assert_close(GaussianDenoiser(law)(x, sigma).flatten(), expected, rtol=0, atol=1e-10)


def test_gaussian_denoiser_takes_a_sigma_per_sample() -> None:
    denoiser, x = GaussianDenoiser(PROBLEM.law), fields(2)
    both = denoiser(x, torch.tensor([0.1, 3.0], dtype=torch.float64))
    torch.testing.assert_close(both, torch.cat([denoiser(x[:1], 0.1), denoiser(x[1:], 3.0)]))
    assert denoiser.tensors() == {} and denoiser.sigma_data == pytest.approx(0.5)


def test_affine_policy_starts_as_the_exact_denoiser() -> None:
    """float32 has 6e-8, and 64 terms of size 1 are added: 64 times 6e-8 bounds the difference."""
    policy, exact, x = AffineDenoiser(PROBLEM.law, SIGMAS), GaussianDenoiser(PROBLEM.law), fields()
    for sigma in SIGMAS[:-1]:
        torch.testing.assert_close(policy(x.float(), sigma).double(), exact(x, sigma), rtol=0, atol=64 * 6e-8)
    assert policy.tensors().keys() == policy.state_dict().keys() == {"A", "b"}


def test_affine_policy_has_its_formula() -> None:
    law = shifted_law()
    policy = AffineDenoiser(law, [2.0, 0.3, 0.0], dtype=torch.float64)
    A, b = seeding.normal(3, "test_analytic", [0, 1], (12, 12)), seeding.normal(4, "test_analytic", [0, 1], (12,))
    policy.load_state_dict({"A": A, "b": b})
    x, sd = seeding.normal(2, "test_analytic", [0], (2, 2, 3)), law.variance.mean().sqrt()
    for i, sigma in enumerate((2.0, 0.3)):
        c_in = (sigma**2 + sd**2) ** -0.5
        change = sigma * sd * c_in * (A[i] @ x.flatten() * c_in / 12**0.5 + b[i])
        torch.testing.assert_close(policy(x, sigma), law.denoised(x, sigma) + change.reshape(x.shape))


def test_mixed_sigmas_give_each_sample_its_own_step_and_gradient() -> None:
    law = shifted_law()
    policy = AffineDenoiser(law, [2.0, 0.3], dtype=torch.float64)
    policy.load_state_dict({"A": seeding.normal(3, "t", [0, 1], (12, 12)), "b": seeding.normal(4, "t", [0, 1], (12,))})
    x, sigmas = seeding.normal(2, "t", range(5), (2, 2, 3)), [0.3, 2.0, 2.0, 0.3, 2.0]
    one_by_one = torch.cat([policy(row[None], sigma) for row, sigma in zip(x, sigmas, strict=True)])
    together = policy(x, torch.tensor(sigmas, dtype=torch.float64))
    torch.testing.assert_close(together, one_by_one)
    parameters = list(policy.parameters())
    grads = [torch.autograd.grad(out.square().sum(), parameters) for out in (together, one_by_one)]
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_sigmas_rounded_to_float32_are_found_and_others_are_refused() -> None:
    policy, x = AffineDenoiser(PROBLEM.law, SIGMAS), fields(len(SIGMAS) - 1).float()
    assert policy(x, torch.tensor(SIGMAS[:-1], dtype=torch.float32)).shape == x.shape
    with pytest.raises(ValueError, match="sigma must be one of the policy's .* got 0.7"):
        policy(x, 0.7)
    with pytest.raises(ValueError, match="expected a sigma for each of 9 samples, got 2"):
        policy(x[:9], torch.tensor(SIGMAS[:2]))
    with pytest.raises(ValueError, match=r"expected x \(b, 1, 8, 8\), got \(2, 8, 8\)"):
        policy(x[:2, 0], SIGMAS[0])
    with pytest.raises(ValueError, match="sigmas must have a positive entry"):
        AffineDenoiser(PROBLEM.law, [0.0])


def test_copies_of_the_policy_learn_apart() -> None:
    policy = AffineDenoiser(PROBLEM.law, SIGMAS)
    other = copy.deepcopy(policy)
    with torch.no_grad():
        other.b.add_(1)
    x = fields().float()
    assert not torch.equal(policy(x, SIGMAS[0]), other(x, SIGMAS[0]))


def optimum(process: DenoisingProcess, beta: float) -> Chain:
    return riccati(base_chain(process, PROBLEM.law), *PROBLEM.reward, beta)


@pytest.mark.parametrize(("eta", "complete", "beta"), [(1.0, True, 1.0), (0.5, False, 3.0)])
def test_process_with_a_loaded_chain_has_the_law_of_the_chain(eta: float, complete: bool, beta: float) -> None:
    """4,096 samples. m and c are at most twice their root mean square over sets of independent draws (SCIENCE.md 5)."""
    process = PROBLEM.process(eta=eta, complete=complete)
    chain = optimum(process, beta)
    policy = AffineDenoiser(PROBLEM.law, process.sigmas).load_predictions(*chain.predictions())
    target = propagate(chain, PROBLEM.start(process))
    x = sample(process, policy, 4096)
    m, c = errors(x, target)
    floor = sampling_floor(target, 4096)
    assert m < 2 * floor[0] and c < 2 * floor[1]
    assert observed_variance(x, target, PROBLEM.H) == pytest.approx(1, abs=4 * (2 / 4096) ** 0.5)


def test_a_chain_of_another_length_is_refused() -> None:
    chain = optimum(PROBLEM.process(5), 1.0)
    with pytest.raises(ValueError, match=r"expected matrices and offsets \(10, 64, 64\) and \(10, 64\), got \(5, 64, 64\)"):
        AffineDenoiser(PROBLEM.law, SIGMAS).load_predictions(*chain.predictions())
