"""What learns beside the policy: its steps, their sum over ranks, its state."""

from typing import Any

import pytest
import torch

from pirf_ray.learning.communicator import SingleProcess
from pirf_ray.learning.learnables import Learnable, LearnableSteps
from pirf_ray.learning.losses import Batch
from pirf_ray.learning.rollouts.records import Sample
from ranks import on_ranks
from tiny_models import CPU

REWARD = torch.tensor([1.0, 2.0, 4.0, 9.0])


class Value(Learnable):
    """A line through the rewards, with their number, and sum, so far."""

    learning_rate = 0.05

    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        self.steps = steps
        self.weight, self.bias = torch.nn.Parameter(torch.tensor(0.1)), torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("sums", torch.zeros(2))

    def statistics(self, batch: Batch) -> torch.Tensor:
        return torch.stack([torch.tensor(float(len(batch))), batch.rollouts.reward.sum()])

    def absorb(self, total: torch.Tensor) -> None:
        self.sums += total

    def loss(self, batch: Batch) -> torch.Tensor:
        x = batch.rollouts.x[:, 0, 0, 0]
        return (self.weight * x + self.bias - batch.rollouts.reward / self.sums[0]).square().mean()


def batch(rows: slice = slice(None), reward: torch.Tensor = REWARD) -> Batch:
    x = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 2, 2)
    return Batch(rollouts=Sample(sample_ids=(0, 1, 2, 3), x=x, reward=reward), key=(0, 0)).select(rows)


def stepped(times: int = 2, **changes: Any) -> tuple[LearnableSteps, dict[str, float]]:
    steps = LearnableSteps({"value": Value(**changes)}, CPU)
    for _ in range(times):
        losses = steps.step(batch(), SingleProcess())
    return steps, losses


def test_every_step_lowers_the_loss_and_the_last_is_reported() -> None:
    steps, first = stepped(1, steps=1)
    later = [steps.step(batch(), SingleProcess())["value_loss"] for _ in range(40)]
    assert first.keys() == {"value_loss"} and later[-1] < 0.2 * first["value_loss"]
    assert not any(p.grad is not None for p in steps.learnables["value"].parameters())


def test_two_ranks_step_as_one_with_the_whole_batch() -> None:
    """Both hold half of the batch. The sums of gradients and statistics differ from one rank's by rounding, about 1e-7."""

    def run(communicator: Any) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        steps = LearnableSteps({"value": Value()}, CPU)
        half = slice(2 * communicator.rank, 2 * communicator.rank + 2)
        losses = [steps.step(batch(half), communicator) for _ in range(2)]
        return steps.tensors(), losses[-1]

    ranks, (alone, losses) = on_ranks(2, run), stepped()
    assert ranks[0][1] == ranks[1][1] == {"value_loss": pytest.approx(losses["value_loss"], rel=1e-5)}
    for name, tensor in alone.tensors().items():
        assert torch.equal(ranks[0][0][name], ranks[1][0][name])
        torch.testing.assert_close(ranks[0][0][name], tensor, rtol=1e-5, atol=1e-6)


def test_a_resumed_learnable_makes_the_same_steps_bit_for_bit() -> None:
    """Parameters, buffers and Adam's moments."""
    whole, _ = stepped(4)
    first, _ = stepped(2)
    second = LearnableSteps({"value": Value()}, CPU)
    second.load(first.state())
    for _ in range(2):
        second.step(batch(), SingleProcess())
    assert whole.tensors().keys() == {"value/weight", "value/bias", "value/sums"}
    assert all(torch.equal(second.tensors()[name], tensor) for name, tensor in whole.tensors().items())


def test_what_is_not_finite_changes_nothing() -> None:
    """Neither parameters nor statistics: a later batch learns as if it had not been there."""
    steps, _ = stepped(1)
    before = {name: tensor.clone() for name, tensor in steps.tensors().items()}
    broken = batch(reward=torch.tensor([1.0, float("nan"), 2.0, float("inf")]))
    steps.step(broken, SingleProcess())
    assert all(torch.equal(steps.tensors()[name], tensor) for name, tensor in before.items())
    steps.step(batch(), SingleProcess())
    undisturbed, _ = stepped(2)
    assert all(torch.equal(steps.tensors()[name], tensor) for name, tensor in undisturbed.tensors().items())
