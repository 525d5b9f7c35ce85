"""Objectives that noise finished samples again: levels and noise, preferences, good and bad samples."""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from envs.denoising import DenoisingProcess
from objective_runs import batch_of, double_learner, first_batch
from pirf_ray.learning.learner import Learner
from pirf_ray.learning.losses import Batch, Context
from pirf_ray.learning.objectives.noising import levels, noised
from pirf_ray.learning.objectives.preference import pairs
from pirf_ray.learning.rollouts.records import Sample
from tiny_models import tiny_info

STEPS, K = 6, 4


def context(solver: str = "euler", truncation: int = K) -> Context:
    return Context(process=DenoisingProcess(STEPS, solver), pde=tiny_info().pde(), truncation=truncation)


def sample(groups: tuple[int, ...]) -> Sample:
    """Return samples, one of each group member, whose fields hold their own number."""
    count = len(groups)
    x = torch.arange(float(count)).reshape(count, 1, 1, 1).expand(count, 1, 2, 2).double()
    return Sample(sample_ids=tuple(range(count)), groups=groups, x=x, reward=torch.zeros(count, dtype=torch.float64))


def drawn(groups: tuple[int, ...], *, update: int = 0, draws: int = 1) -> dict[int, tuple[float, torch.Tensor]]:
    """Return the level and the standard normal noise of each row, of the last draw."""
    found = {}
    for part in noised(context(), Batch(rollouts=sample(groups), key=(0, update)), draws=draws, purpose="p"):
        for row, x, target in zip(part.rows.tolist(), part.x, part.target, strict=True):
            found[row] = part.sigma, (x - target) / part.sigma
    return found


def test_levels_are_those_of_the_last_steps_with_a_uniform_law_of_ln_sigma() -> None:
    """The weight of a level is the length of ln sigma that is nearer to it than to its neighbours, 1 on average."""
    for solver, count in (("euler", K), ("stochastic", K - 1)):
        steps, weights = levels(context(solver))
        assert steps == list(range(STEPS - K, STEPS - K + count))
        logs = [math.log(context(solver).process.sigmas[i]) for i in steps]
        middles = [(a + b) / 2 for a, b in pairwise(logs)]
        edges = [logs[0], *middles, logs[-1]]
        lengths = [a - b for a, b in pairwise(edges)]
        assert weights == pytest.approx([length * count / sum(lengths) for length in lengths])
        assert sum(weights) == pytest.approx(count)
    assert levels(context("stochastic", truncation=2))[1] == [1.0]


def test_a_group_shares_level_and_noise_and_other_groups_have_their_own() -> None:
    found = drawn((7, 7, 7, 9))
    assert found[0][0] == found[1][0] == found[2][0]
    torch.testing.assert_close(found[0][1], found[1][1])
    assert not torch.allclose(found[0][1], found[3][1])


def test_the_draws_follow_key_and_group_alone() -> None:
    """Not the other samples of the batch, nor the order."""
    whole, alone = drawn((7, 7, 9, 9)), drawn((9, 9))
    assert whole[2][0] == alone[0][0]
    torch.testing.assert_close(whole[2][1], alone[0][1])
    assert not torch.allclose(drawn((7, 7), update=1)[0][1], whole[0][1])
    assert not torch.allclose(drawn((7, 7), draws=2)[0][1], whole[0][1])


def test_every_level_is_drawn() -> None:
    """In 60 draws of four levels one is missing with probability 4 (3/4)^60 = 1e-7."""
    assert {drawn((group,))[0][0] for group in range(60)} == set(context().process.sigmas[STEPS - K : STEPS])


def test_neighbours_of_a_group_are_pairs_and_the_higher_reward_wins() -> None:
    """Of the groups 4, 2, 4, 2 the rows 0, 2 and 1, 3 are pairs. The first of a tie wins."""
    winners, losers = pairs(torch.tensor([1.0, 5.0, 2.0, 5.0]), (4, 2, 4, 2))
    assert (winners.tolist(), losers.tolist()) == ([2, 1], [0, 3])
    winners, losers = pairs(torch.tensor([1.0, 0.0, 3.0, 9.0]), (0, 0, 0, 0))
    assert (winners.tolist(), losers.tolist()) == ([0, 3], [1, 2])
    with pytest.raises(ValueError, match="--group must be even, got 3"):
        pairs(torch.zeros(3), (0, 0, 0))


def made(name: str, change: float, **settings: Any) -> tuple[Learner, Batch]:
    """Return a learner whose tuned policy is the base model plus a change, float64, and its batch."""
    config, chunks = first_batch(name, **settings)
    learner = double_learner(config)
    for tensor in learner.weights().values():
        tensor.add_(change)
    return learner, batch_of(learner, chunks)


def errors(learner: Learner, batch: Batch, purpose: str, policy: Any) -> torch.Tensor:
    """Return w |D(x_0 + s n; s) - x_0|^2 / s^2 (b,) of a policy, on the graph."""
    own = learner.parts.objective.context
    found = torch.zeros(len(batch), dtype=torch.float64)
    for part in noised(own, batch, draws=1, purpose=purpose):
        denoised = policy.denoisers(own.process)(part.sigma)(part.x, part.sigma)
        value = part.weight * (denoised - part.target).square().flatten(1).sum(1) / part.sigma**2
        found = found.index_add(0, part.rows, value)
    return found


def flat_gradient(learner: Learner, value: torch.Tensor) -> torch.Tensor:
    learner.optimizer.clear()
    value.backward()
    return learner.optimizer.flat_gradient()


def test_the_preference_loss_is_the_logistic_loss_of_the_implicit_rewards() -> None:
    """-ln sigmoid(beta (Delta_w - Delta_l)), Delta = [e(base) - e(tuned)] / 2; ln 2 where both policies are one."""
    start, batch = made("preference", 0.0, preference_beta=0.3)
    assert start.parts.objective.loss(batch, start.policies, start.reward).value.item() == pytest.approx(math.log(2))
    learner, batch = made("preference", 0.01, preference_beta=0.3)
    delta = 0.5 * (
        errors(learner, batch, "preference", learner.policies.base) - errors(learner, batch, "preference", learner.policy)
    )
    winners, losers = pairs(batch.rollouts.reward, batch.rollouts.groups)
    expected = -torch.nn.functional.logsigmoid(0.3 * (delta[winners] - delta[losers])).mean()
    found = learner.parts.objective.loss(batch, learner.policies, learner.reward)
    assert found.value.item() == pytest.approx(expected.item(), rel=1e-10)
    torch.testing.assert_close(flat_gradient(learner, found.value), flat_gradient(learner, expected), rtol=1e-8, atol=1e-10)


def test_only_the_order_of_the_rewards_counts() -> None:
    learner, batch = made("preference", 0.01)
    loss = learner.parts.objective.loss(batch, learner.policies, learner.reward).value.item()
    for change in (lambda r: 5 * r - 3, lambda r: r.exp()):
        object.__setattr__(batch.rollouts, "reward", change(batch.rollouts.reward))
        assert learner.parts.objective.loss(batch, learner.policies, learner.reward).value.item() == loss


@pytest.mark.parametrize(("advantage", "slope"), [(3.0, 1.0), (0.0, 0.0), (-3.0, -1.0), (0.5, 0.5)])
def test_good_samples_are_learned_and_bad_ones_unlearned(advantage: float, slope: float) -> None:
    """Where the tuned policy is the old one, the gradient is b (2 p - 1) times that of the denoising error, 2 p - 1 = clip(A / Z)."""
    learner, batch = made("forward-process", 0.0, contrast=0.7)
    batch = Batch(rollouts=batch.rollouts, key=batch.key, advantages=torch.full((len(batch),), advantage, dtype=torch.float64))
    found = flat_gradient(learner, learner.parts.objective.loss(batch, learner.policies, learner.reward).value)
    error = flat_gradient(learner, errors(learner, batch, "forward process", learner.policy).mean())
    torch.testing.assert_close(found, 0.7 * slope * error, rtol=1e-8, atol=1e-10 * error.abs().max().item())


def test_the_old_policy_follows_by_its_rate() -> None:
    learner, batch = made("forward-process", 0.0, old_rate=0.25)
    for tensor in learner.weights().values():
        tensor.add_(4.0)
    learner.parts.advance(learner.policies, 1)
    for name, tensor in learner.policies.learned(learner.policies.old).items():
        torch.testing.assert_close(tensor, learner.policies.start[name] + 1.0)


def test_missing_advantages_are_named() -> None:
    learner, batch = made("forward-process", 0.0)
    with pytest.raises(ValueError, match="forward-process needs a credit that fills advantages, such as --credit group"):
        learner.parts.objective.loss(Batch(rollouts=batch.rollouts, key=(0, 0)), learner.policies, learner.reward)
