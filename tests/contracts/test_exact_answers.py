"""Objectives against what they claim to reach, in 64 dimensions, through the product's own rollouts and learner.

The problem is tests/support/gaussian_problem.py, the laws are pirf_ray.metrics.exact and exact_chains. m is the relative error of
the mean, c that of the covariance. 4,096 samples of the very law have m .02 and c .04 (``sampling_floor``). The bounds are those of
the house: m .05 for pathwise and adjoint matching, m .15 for policy gradients, half of the way of the reward for objectives that
claim no tilt. Trainings take 3 to 20 seconds of one core.
"""

from collections.abc import Iterator

import pytest
import torch

from gaussian_problem import problem
from gaussian_training import Graded, exact, settings, train
from pirf_ray.metrics.exact import Gaussian, errors, expected_reward, sampling_floor
from pirf_ray.metrics.exact_chains import propagate, riccati, riccati_without_future_kl

FAST = {"learning_rate": 3e-2, "schedule": "cosine"}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads would wait for each other in tensors this small."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def laws() -> dict[str, Gaussian]:
    """The base chain's law, the Riccati optimum, and the fixed point of a KL that ignores later steps."""
    own, chain = exact(settings())
    start = own.start(own.process())
    return {
        "base": propagate(chain, start),
        "optimum": propagate(riccati(chain, *own.reward), start),
        "without future": propagate(riccati_without_future_kl(chain, *own.reward), start),
    }


def reward(law: Gaussian) -> float:
    own = problem()
    return expected_reward(law, *own.reward).item()


def test_the_laws_differ_by_more_than_the_bounds(laws: dict[str, Gaussian]) -> None:
    """Otherwise a training that does nothing, or reaches the other law, would pass."""
    assert errors(laws["base"], laws["optimum"])[0] > 0.9
    assert errors(laws["without future"], laws["optimum"])[0] > 0.15
    assert sampling_floor(laws["optimum"], 4096)[0] < 0.03


def raised(graded: Graded, laws: dict[str, Gaussian]) -> float:
    """The part of the way from the base law's reward to the optimum's that a training went."""
    low, high = reward(laws["base"]), reward(laws["optimum"])
    return (graded.reward - low) / (high - low)


@pytest.mark.parametrize("name", ["pathwise", "adjoint"])
def test_gradient_objectives_reach_the_optimum_of_the_chain(name: str, laws: dict[str, Gaussian]) -> None:
    """m .05, c .12, and E[r] within 10 % of the optimum's, which a KL of another strength would miss."""
    own = {"pathwise": {"path_kl": 1.0}, "adjoint": {"temperature": 1.0}}[name]
    graded = train(updates=250, objective=name, **own, **FAST)
    mean, covariance = graded.errors(laws["optimum"])
    assert mean < 0.05 and covariance < 0.12
    assert graded.reward == pytest.approx(reward(laws["optimum"]), rel=0.1)


@pytest.mark.slow
def test_a_policy_gradient_with_the_kl_in_the_return_reaches_the_optimum(laws: dict[str, Gaussian]) -> None:
    """From rewards alone: the reward has no gradient here."""
    own = {"kl": 1.0, "kl_in_return": True, "normalize": False, "group": 256}
    graded = train(differentiable=False, updates=700, objective="policy-gradient", **own, **FAST)
    mean, covariance = graded.errors(laws["optimum"])
    assert mean < 0.15 and covariance < 0.15
    assert mean < graded.errors(laws["without future"])[0]


@pytest.mark.slow
def test_the_published_policy_gradient_reaches_its_own_fixed_point(laws: dict[str, Gaussian]) -> None:
    """The KL of a step ignores what the step causes later on. m within .05 of this law's, c within 10 %."""
    own = {"kl": 1.0, "normalize": False, "group": 256}
    graded = train(differentiable=False, updates=700, objective="policy-gradient", **own, **FAST)
    mean, covariance = graded.errors(laws["without future"])
    assert mean < 0.05 and covariance < 0.10
    assert graded.errors(laws["optimum"])[0] > 0.1


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("preference", {"preference_beta": 0.5, "group": 2}),
        ("forward-process", {"contrast": 1.0, "group": 256}),
    ],
)
def test_objectives_that_claim_no_tilt_raise_the_reward_half_of_the_way(
    name: str, own: dict[str, float], laws: dict[str, Gaussian]
) -> None:
    """They move the mean towards the optimum (m < .85), stay finite, and have no reward gradient."""
    graded = train(differentiable=False, updates=200, objective=name, **own, **FAST)
    assert graded.samples.isfinite().all()
    assert raised(graded, laws) > 0.5
    assert graded.errors(laws["optimum"])[0] < 0.85


def test_a_learned_surrogate_raises_the_reward_half_of_the_way(laws: dict[str, Gaussian]) -> None:
    """The gradient passes a network that has seen rewards only."""
    own = {"surrogate_kl": 0.1, "surrogate_steps": 4, "surrogate_rate": 3e-3}
    graded = train(differentiable=False, updates=150, objective="surrogate", **own, **FAST)
    assert graded.samples.isfinite().all()
    assert raised(graded, laws) > 0.5


def test_training_does_nothing_without_a_difference_of_rewards() -> None:
    """A constant reward has no advantages, so the weights stay where they are, bit for bit."""
    graded = train(constant=True, differentiable=False, updates=5, objective="policy-gradient", group=256, **FAST)
    assert all(not tensor.any() for tensor in graded.tuning.learner.weights().values())
