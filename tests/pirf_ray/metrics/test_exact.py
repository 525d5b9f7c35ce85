"""Exact laws: the tilt, moments of the reward, errors and their sampling floor."""

import math

import pytest
import torch

from envs.numerics import seeding
from gaussian_problem import problem
from pirf_ray.metrics.exact import (
    Gaussian,
    errors,
    expected_reward,
    moments,
    noised,
    observed_variance,
    reward_std,
    sampling_floor,
    tilt,
)

NOISE, BETA = 0.4, 2.0


def normal(stream: str, *shape: int) -> torch.Tensor:
    return seeding.normal(0, f"test_exact/{stream}", [0], shape)[0]


def prior(d: int = 4) -> Gaussian:
    root = normal("root", d, d)
    return Gaussian(mean=normal("mean", d), covariance=root @ root.mT + 0.1 * torch.eye(d, dtype=torch.float64))


def draws(law: Gaussian, n: int, stream: str = "draws") -> torch.Tensor:
    root: torch.Tensor = torch.linalg.cholesky(law.covariance)
    return law.mean + normal(stream, n, len(law.mean)) @ root.mT


def reward(x: torch.Tensor, H: torch.Tensor, y: torch.Tensor, noise: float) -> torch.Tensor:
    misfit: torch.Tensor = (y - x @ H.mT).square().sum(1)
    return -misfit / (2 * noise**2)


def test_tilt_is_the_kalman_update_with_one_observation_after_another() -> None:
    """exp(r/beta) is the likelihood with variance beta s^2, and independent observations may come in turn."""
    law, H, y = prior(), normal("H", 3, 4), normal("y", 3)
    mean, covariance = law.mean, law.covariance
    for h, value in zip(H, y, strict=True):
        gain = covariance @ h / (h @ covariance @ h + BETA * NOISE**2)
        mean, covariance = mean + gain * (value - h @ mean), covariance - torch.outer(gain, h @ covariance)
    exact = tilt(law, H, y, NOISE, BETA)
    torch.testing.assert_close(exact.mean, mean, rtol=0, atol=1e-10)
    torch.testing.assert_close(exact.covariance, covariance, rtol=0, atol=1e-10)


def log_density(law: Gaussian, x: torch.Tensor) -> torch.Tensor:
    """Return ln of the density at x (n, d), up to a constant."""
    centred = x - law.mean
    weighted: torch.Tensor = torch.linalg.solve(law.covariance, centred.mT).mT
    return -(centred * weighted).sum(1) / 2


def test_tilt_has_the_density_that_it_claims() -> None:
    """ln tilt(x) - ln prior(x) - r(x)/beta is the same constant at every x."""
    law, H, y = prior(), normal("H", 3, 4), normal("y", 3)
    exact, x = tilt(law, H, y, NOISE, BETA), normal("x", 6, 4)
    density = [log_density(g, x) for g in (exact, law)]
    constant = density[0] - density[1] - reward(x, H, y, NOISE) / BETA
    torch.testing.assert_close(constant, constant[:1].expand(6), rtol=0, atol=1e-9)


def test_tilt_of_a_law_without_a_mode_keeps_the_mode_at_zero() -> None:
    """The mean mode of the problem has no variance. Observations cannot change it."""
    p = problem()
    exact = tilt(p.prior, *p.reward)
    ones = torch.ones(64, dtype=torch.float64)
    assert abs(ones @ exact.mean) < 1e-12 and abs(ones @ exact.covariance @ ones) < 1e-12


def test_reward_has_the_exact_mean_and_standard_deviation() -> None:
    """n = 40,000 draws. The mean has standard error std/sqrt(n).

    The variance has std Var sqrt((kurtosis - 1)/n). A quadratic form of a normal vector has kurtosis at most 15, so the std has
    relative error at most sqrt(14/n)/2 = .0094. Four standard errors are allowed for each.
    """
    law, H, y = prior(), normal("H", 3, 4), normal("y", 3)
    r = reward(draws(law, 40_000), H, y, NOISE)
    std = reward_std(law, H, y, NOISE).item()
    assert r.mean().item() == pytest.approx(expected_reward(law, H, y, NOISE).item(), abs=4 * std / 200)
    assert r.std().item() == pytest.approx(std, rel=4 * 0.0094)


def test_problem_scores_fields_by_the_reward_that_the_exact_functions_assume() -> None:
    p = problem()
    x = normal("fields", 5, 1, 8, 8)
    torch.testing.assert_close(p.log_likelihood(x), reward(x.flatten(1), *p.reward), rtol=1e-12, atol=0)
    point = Gaussian(mean=x[0].flatten(), covariance=torch.zeros(64, 64, dtype=torch.float64))
    assert expected_reward(point, *p.reward).item() == pytest.approx(p.log_likelihood(x)[0].item(), rel=1e-12)


def test_sampling_floor_is_the_error_of_draws_of_the_target_itself() -> None:
    """The mean square of 200 sets has relative error at most sqrt(2/200) = .1 for m, and about that for c. Four are allowed."""
    law = prior()
    sets = draws(law, 200 * 256).reshape(200, 256, 4)
    squares = torch.tensor([errors(x, law) for x in sets]).square().mean(0)
    m, c = sampling_floor(law, 256)
    assert squares[0].item() == pytest.approx(m**2, rel=0.4)
    assert squares[1].item() == pytest.approx(c**2, rel=0.4)


def test_errors_are_relative_to_the_target() -> None:
    law = prior()
    scaled = Gaussian(mean=1.25 * law.mean, covariance=0.5 * law.covariance)
    assert errors(scaled, law) == pytest.approx((0.25, 0.5))
    assert observed_variance(scaled, law, normal("H", 3, 4)) == pytest.approx(0.5)
    assert errors(law, law) == (0.0, 0.0)


def test_moments_read_fields_of_any_shape() -> None:
    x = normal("fields", 5, 1, 2, 2)
    law = moments(x)
    centred = x.flatten(1) - x.flatten(1).mean(0)
    torch.testing.assert_close(law.covariance, centred.mT @ centred / 4)


def test_noised_law_adds_white_noise() -> None:
    p = problem()
    difference = noised(p.law, 0.5).covariance - p.prior.covariance
    torch.testing.assert_close(difference, 0.25 * torch.eye(64, dtype=torch.float64), rtol=0, atol=1e-12)
    draw = p.law.draw(normal("noise", 4096, 1, 8, 8), 0.5)
    assert errors_of_centred(draw, noised(p.law, 0.5)) < 2


def errors_of_centred(x: torch.Tensor, law: Gaussian) -> float:
    """Return the covariance error of draws over its root mean square."""
    trace, norm = law.covariance.trace(), law.covariance.norm()
    floor = math.sqrt((1 + (trace / norm) ** 2) / (len(x) - 1))
    return float((moments(x).covariance - law.covariance).norm() / norm) / floor


def test_bad_input_is_named() -> None:
    law, H, y = prior(), normal("H", 3, 4), normal("y", 3)
    with pytest.raises(ValueError, match=r"H must be \(k, 4\) and y \(k,\), got \(4, 3\) and \(3,\)"):
        tilt(law, H.mT, y, NOISE)
    with pytest.raises(ValueError, match="noise and beta must be positive, got 0.4 and 0"):
        tilt(law, H, y, NOISE, 0.0)
    with pytest.raises(ValueError, match="at least 2 samples, got 1"):
        errors(torch.zeros(1, 4), law)
    with pytest.raises(ValueError, match="expected fields of 4 numbers as in the target, got 5"):
        errors(torch.zeros(2, 5), law)
    with pytest.raises(ValueError, match="the mean of the target is 0"):
        errors(law, Gaussian(mean=torch.zeros_like(law.mean), covariance=law.covariance))
    with pytest.raises(ValueError, match="the mean of the target is 0"):
        sampling_floor(problem().prior, 4096)
    with pytest.raises(ValueError, match=r"must be \(d,\) and \(d, d\), got \(3,\) and \(4, 4\)"):
        Gaussian(mean=y, covariance=law.covariance)
