"""Policy gradients: the score-function gradient, the clipped ratio, the KL of later steps."""

from typing import Any

import numpy as np
import pytest
import torch

from envs.denoising import DenoisingProcess
from objective_runs import batch_of, double_learner, first_batch
from pirf_ray.learning.learner import Learner
from pirf_ray.learning.losses import Batch, Context
from pirf_ray.learning.objectives.policy_gradient import PolicyGradient, PolicyGradientSettings
from pirf_ray.learning.objectives.steps import transitions
from pirf_ray.learning.rollouts.records import Trajectory
from tiny_models import tiny_info

CHANGE = 0.01
"""What the behaviour policy of ``first_batch`` adds to each learning tensor."""


def made(change: float = CHANGE, **settings: Any) -> tuple[Learner, Batch]:
    """Return a learner whose tuned policy is the base model plus a change, float64, and its batch."""
    config, chunks = first_batch("policy-gradient", **settings)
    learner = double_learner(config)
    for tensor in learner.weights().values():
        tensor.add_(change)
    return learner, batch_of(learner, chunks)


def laws(learner: Learner, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return log densities under the tuned policy and under the behaviour policy (k, b), and the trained nodes."""
    steps = list(transitions(learner.parts.objective.context, learner.policies, batch.rollouts))
    nodes = [step.node for step in steps]
    return torch.stack([step.law.log_density(step.after) for step in steps]), batch.rollouts.log_density[nodes], nodes


def flat_gradient(learner: Learner, value: torch.Tensor) -> torch.Tensor:
    learner.optimizer.clear()
    value.backward()
    return learner.optimizer.flat_gradient()


@pytest.mark.parametrize("ratio", ["step", "sequence"])
def test_on_the_behaviour_policy_it_is_the_score_function_gradient(ratio: str) -> None:
    """grad = -mean over chains of sum_i A_i grad ln p_i, since every ratio is 1.

    The rollouts' densities are float32, so ratios are off by about 1e-6, and the gradient by as much.
    """
    learner, batch = made(ratio=ratio)
    found = flat_gradient(learner, learner.parts.objective.loss(batch, learner.policies, learner.reward).value)
    log_densities, _, nodes = laws(learner, batch)
    expected = flat_gradient(learner, -(batch.advantages[nodes] * log_densities).sum(0).mean())
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


def by_numpy(log_ratio: np.ndarray, advantage: np.ndarray, dimensions: int, clip: float, ratio: str) -> float:
    """Return the mean over chains of sum_i -d min(rho A, clip(rho) A); a sequence has one ratio for all steps."""
    log_ratio, total = log_ratio / dimensions, len(log_ratio)
    if ratio == "sequence":
        log_ratio, advantage = log_ratio.mean(0, keepdims=True), advantage.mean(0, keepdims=True)
    rho = np.exp(log_ratio)
    gain = np.minimum(rho * advantage, np.clip(rho, 1 - clip, 1 + clip) * advantage)
    return float(-(gain.sum(0) * dimensions * total / len(rho)).mean())


@pytest.mark.parametrize("ratio", ["step", "sequence"])
@pytest.mark.parametrize("clip", [1e-4, 10.0])
def test_ratios_are_clipped_where_they_gain(ratio: str, clip: float) -> None:
    """Off the behaviour policy, float64 against numpy."""
    learner, batch = made(0.03, ratio=ratio, clip_ratio=clip)
    loss = learner.parts.objective.loss(batch, learner.policies, learner.reward)
    tuned, old, nodes = laws(learner, batch)
    log_ratio, advantage = (t.detach().numpy() for t in (tuned - old, batch.advantages[nodes]))
    assert np.abs(log_ratio).max() > 0.1
    expected = by_numpy(log_ratio, advantage, batch.rollouts.x[0, 0].numel(), clip, ratio)
    assert loss.value.item() == pytest.approx(expected, rel=1e-9)
    assert (loss.metrics["clipped"].mean() > 0) == (clip < 1)


def test_the_kl_is_that_of_the_trained_steps() -> None:
    """loss(beta) - loss(0) = beta mean KL, with KL = sum_i |m_t - m_b|^2 / (2 c_i^2)."""
    values = {}
    for beta in (0.0, 0.5):
        learner, batch = made(kl=beta)
        values[beta] = learner.parts.objective.loss(batch, learner.policies, learner.reward)
    own = torch.zeros(len(batch), dtype=torch.float64)
    for step in transitions(learner.parts.objective.context, learner.policies, batch.rollouts):
        own += ((step.law.mean - batch.rollouts.base_mean[step.node]) / step.law.std).square().flatten(1).sum(1).detach() / 2
    assert own.min() > 0
    torch.testing.assert_close(values[0.5].metrics["kl"], own, rtol=1e-9, atol=0)
    assert (values[0.5].value - values[0.0].value).item() == pytest.approx(0.5 * own.mean().item(), rel=1e-6)


def tree(kl: torch.Tensor, process: DenoisingProcess) -> Trajectory:
    """Return trees of a root, two children, and a leaf below each, whose transitions to the nodes 1, 2 have these KLs (2, b).

    The transitions to the leaves are deterministic.
    """
    count, shape = kl.shape[1], (5, kl.shape[1], 1, 2, 2)
    base_mean = torch.zeros(shape, dtype=torch.float64)
    for node in (1, 2):
        std = process.step_law_of_mean(0, torch.zeros(shape[1:], dtype=torch.float64)).std
        base_mean[node, :, 0, 0, 0] = std * (2 * kl[node - 1]).sqrt()
    zeros = torch.zeros(5, count, dtype=torch.float64)
    return Trajectory(
        sample_ids=tuple(range(count)),
        groups=(0,) * count,
        x=torch.zeros(shape, dtype=torch.float64),
        steps=(0, 1, 1, 2, 2),
        parents=(-1, 0, 0, 1, 2),
        leaves=(3, 4),
        mean=torch.zeros(shape, dtype=torch.float64),
        log_density=zeros,
        reward=zeros[:2],
        base_mean=base_mean,
        base_log_density=zeros,
    )


def test_the_kl_of_later_steps_is_averaged_over_the_branches_and_centred_in_the_group() -> None:
    """Later than the root come both children: the mean of their KLs. Nothing stochastic comes later than a child."""
    process = DenoisingProcess(2, "stochastic")
    kl = torch.tensor([[1.0, 5.0], [3.0, 1.0]], dtype=torch.float64)
    context = Context(process=process, pde=tiny_info().pde(), truncation=2)
    objective = PolicyGradient(PolicyGradientSettings(kl=0.1, kl_in_return=True), context)
    later = objective._later_kl(tree(kl, process))
    torch.testing.assert_close(later[0], torch.tensor([-0.5, 0.5], dtype=torch.float64))  # means 2 and 3, minus 2.5
    assert torch.equal(later[1:], torch.zeros(4, 2, dtype=torch.float64))


def test_the_kl_in_the_return_needs_whole_groups() -> None:
    context = Context(process=DenoisingProcess(3, "stochastic"), pde=tiny_info().pde(), truncation=2)
    found = [
        PolicyGradient(PolicyGradientSettings(kl=kl, kl_in_return=inside), context).coupled
        for kl, inside in ((0.0, True), (0.1, False), (0.1, True))
    ]
    assert found == [False, False, True]


def test_what_is_missing_is_named() -> None:
    learner, batch = made()
    objective = learner.parts.objective
    with pytest.raises(ValueError, match="policy-gradient needs a credit that fills advantages, such as --credit group"):
        objective.loss(Batch(rollouts=batch.rollouts, key=(0, 0)), learner.policies, learner.reward)
    learner, batch = made(kl=0.1, reference_densities=False)
    with pytest.raises(ValueError, match="--reference-densities"):
        learner.parts.objective.loss(batch, learner.policies, learner.reward)
