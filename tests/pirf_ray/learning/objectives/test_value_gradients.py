"""Objectives that follow the gradient of a value: adjoint matching, and a learned surrogate."""

from typing import Any

import pytest
import torch

from envs.denoising import State
from objective_runs import batch_of, double_learner, doubled, first_batch
from pirf_ray.learning.learner import Learner
from pirf_ray.learning.losses import Batch
from pirf_ray.learning.objectives.steps import trained_nodes
from pirf_ray.learning.objectives.surrogate import SurrogateReward, SurrogateSettings
from pirf_ray.learning.rollouts.records import Trajectory
from tiny_models import RESOLUTION, tiny_learner, tiny_source


def base_chains(**settings: Any) -> tuple[Learner, Batch]:
    """Return a learner at the base model, float64, and chains of the base model itself."""
    config, _ = first_batch("adjoint", **settings)
    source = tiny_source(config)
    source.publish(0, tiny_learner(config).published())
    learner = double_learner(config)
    return learner, batch_of(learner, [doubled(chunk) for chunk in source.batch(0)])


def value(learner: Learner, trajectory: Trajectory, node: int, x: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return r(x_N) / beta (b,) of the base chain that starts from x at a node and takes the noise of the trajectory."""
    context = learner.parts.objective.context
    process, base_from = context.process, learner.policies.base.denoisers(context.process)
    state = State(x=x, step=trajectory.steps[node])
    while not process.terminal(state):
        sigma, here = process.sigmas[state.step], trajectory.x[state.step]
        noise = None
        if process.has_density(state.step):
            with torch.no_grad():
                law = process.step_law(State(x=here, step=state.step), base_from(sigma)(here, sigma))
                noise = law.noise(trajectory.x[state.step + 1])
        state = process.transition(state, base_from(sigma)(state.x, sigma), noise)
    return context.reward(learner.reward, state.x).reward / temperature


def test_the_lean_adjoint_is_the_gradient_of_the_reward_along_the_base_chain() -> None:
    """Of chains that the base model made, with their own noise.

    The states are float32: the recomputed chain is off by about 1e-6 of a state, and the gradient by as much.
    """
    temperature = 0.5
    learner, batch = base_chains(temperature=temperature)
    trajectory, objective = batch.rollouts, learner.parts.objective
    adjoints = objective._adjoints(trajectory, learner.policies, learner.reward)
    nodes = trained_nodes(objective.context, trajectory)
    assert set(nodes) <= adjoints.keys()
    for node in nodes:
        x = trajectory.x[node].clone().requires_grad_()
        (expected,) = torch.autograd.grad(value(learner, trajectory, node, x, temperature).sum(), x)
        torch.testing.assert_close(adjoints[node], expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())


def test_at_the_base_model_the_loss_is_that_of_the_whole_target() -> None:
    """sum_i |Sigma_i^(1/2) lambda|^2 / 2, and its gradient points along lambda: a step raises the reward."""
    learner, batch = base_chains()
    objective, trajectory = learner.parts.objective, batch.rollouts
    adjoints = objective._adjoints(trajectory, learner.policies, learner.reward)
    expected = torch.zeros(len(batch), dtype=torch.float64)
    for node in trained_nodes(objective.context, trajectory):
        step = trajectory.steps[trajectory.parents[node]]
        std = objective.context.process.step_law_of_mean(step, trajectory.mean[node]).std
        expected += 0.5 * (std * adjoints[node]).square().flatten(1).sum(1)
    found = objective.loss(batch, learner.policies, learner.reward)
    torch.testing.assert_close(found.metrics["matching"], expected, rtol=1e-4, atol=1e-6)
    assert found.kl.max() < 1e-6


def test_the_surrogate_fits_standardized_rewards_from_all_batches() -> None:
    """mean and std over everything so far, by hand: the rewards 1, 3 of one batch and 5, 7 of another."""
    surrogate = SurrogateReward((1, RESOLUTION, RESOLUTION), SurrogateSettings(surrogate_width=4))
    for rewards in ([1.0, 3.0], [5.0, 7.0]):
        values = torch.tensor(rewards, dtype=torch.float64)
        surrogate.absorb(torch.stack([torch.tensor(2.0, dtype=torch.float64), values.sum(), values.square().sum()]))
    assert surrogate.standardized(torch.tensor([4.0])).item() == pytest.approx(0)
    assert surrogate.standardized(torch.tensor([4.0 + 5**0.5])).item() == pytest.approx(1)  # variance (9 + 1 + 1 + 9) / 4


def test_two_surrogates_of_one_seed_are_equal() -> None:
    """So that every rank starts with the same. Nothing global is reseeded."""
    before = torch.get_rng_state()
    first, second = (SurrogateReward((1, 8, 8), SurrogateSettings(surrogate_width=4)).state_dict() for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before), "the global generator is as it was"
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_policy_follows_the_surrogate_and_leaves_it_as_it_is() -> None:
    """loss = -S(x_0) of the replayed samples. The reward itself is not asked."""
    config, chunks = first_batch("surrogate")
    learner = double_learner(config)
    objective = learner.parts.objective
    batch = batch_of(learner, chunks)
    found = objective.loss(batch, learner.policies, lambda *_: pytest.fail("the reward was called"))
    expected = -objective.surrogate(found.samples[0]).mean()
    torch.testing.assert_close(found.value, expected)
    found.value.backward()
    assert not any(parameter.grad is not None for parameter in objective.surrogate.parameters())
    assert learner.optimizer.flat_gradient().abs().max() > 0
    assert all(parameter.requires_grad for parameter in objective.surrogate.parameters()), "it learns again"
