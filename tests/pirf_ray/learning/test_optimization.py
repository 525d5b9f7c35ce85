"""The optimizer: rates and clipping by group, the schedule, resuming."""

import math

import pytest
import torch

from envs.common.checks import ConfigError
from pirf_ray.learning.optimization import GroupedAdam, OptimizerSettings
from pirf_ray.learning.parameters import Group


def parameters(*sizes: int) -> dict[str, torch.nn.Parameter]:
    return {f"p{i}": torch.nn.Parameter(torch.zeros(size)) for i, size in enumerate(sizes)}


def flat(adam: GroupedAdam) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in adam.parameters])


def test_the_first_step_of_adam_moves_each_weight_by_the_rate_of_its_group() -> None:
    """Whatever the size of the gradient: m / sqrt(v) is its sign, up to Adam's 1e-8 over the gradient."""
    adam = GroupedAdam([Group(parameters=parameters(2, 1)), Group(parameters=parameters(2), rate=0.1)])
    adam.step(torch.tensor([1e-3, -5.0, 2.0, 1.0, -1.0]), rate=0.5, clip_norm=math.inf)
    torch.testing.assert_close(flat(adam), torch.tensor([-0.5, 0.5, -0.5, -0.05, 0.05]), rtol=1e-4, atol=0)


def test_groups_without_a_limit_are_clipped_together_and_the_others_alone() -> None:
    """Norm 5 of (3) and (4) together is clipped to 1, norm 13 of (5, 12) to its own limit 2.6, and norm 0.1 is below its limit."""
    groups = [
        Group(parameters=parameters(1)),
        Group(parameters=parameters(2), clip=2.6),
        Group(parameters=parameters(1)),
        Group(parameters=parameters(1), clip=1.0),
    ]
    adam = GroupedAdam(groups)
    adam.step(torch.tensor([3.0, 5.0, 12.0, 4.0, 0.1]), rate=1e-3, clip_norm=1.0)
    clipped = torch.cat([p.grad for p in adam.parameters])
    torch.testing.assert_close(clipped, torch.tensor([0.6, 1.0, 2.4, 0.8, 0.1]))


def test_the_flat_gradient_has_every_parameter_in_its_place() -> None:
    adam = GroupedAdam([Group(parameters=parameters(2, 1)), Group(parameters=parameters(2))])
    first, second, third = adam.parameters
    (first.sum() * 2 + third[1] * 3).backward()
    assert second.grad is None
    assert adam.flat_gradient().tolist() == [2, 2, 0, 0, 3]
    adam.clear()
    assert adam.flat_gradient().tolist() == [0.0] * 5


def test_a_gradient_of_zero_is_clipped_to_zero() -> None:
    adam = GroupedAdam([Group(parameters=parameters(2))])
    adam.step(torch.zeros(2), rate=1.0, clip_norm=1.0)
    assert flat(adam).tolist() == [0, 0]


def test_a_resumed_optimizer_makes_the_same_steps_bit_for_bit() -> None:
    whole, first, second = (
        GroupedAdam([Group(parameters=parameters(3)), Group(parameters=parameters(2), rate=0.3, clip=0.5)]) for _ in range(3)
    )
    gradients = torch.randn((5, 5), generator=torch.Generator().manual_seed(0))
    for i, gradient in enumerate(gradients):
        whole.step(gradient, rate=0.1, clip_norm=1.0)
        if i == 2:
            with torch.no_grad():
                for own, other in zip(second.parameters, first.parameters, strict=True):
                    own.copy_(other)
            second.load(first.state())
        (first if i < 2 else second).step(gradient, rate=0.1, clip_norm=1.0)
    assert torch.equal(flat(second), flat(whole))


def test_the_cosine_falls_from_the_whole_rate_to_zero() -> None:
    settings = OptimizerSettings(updates=4, learning_rate=0.1, schedule="cosine")
    assert [settings.rate(u) for u in range(5)] == pytest.approx([0.1, 0.0853553, 0.05, 0.0146447, 0.0], abs=1e-7)
    assert OptimizerSettings(updates=4, learning_rate=0.1).rate(3) == 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"updates": 0}, "--updates must be positive, got 0"),
        ({"batch": 0}, "--batch must be positive"),
        ({"micro_batch": 0}, "--micro-batch must be positive"),
        ({"learning_rate": 0.0}, "--learning-rate must be positive"),
        ({"clip_norm": 0.0}, "--clip-norm must be positive"),
        ({"ema_decay": 1.0}, r"--ema-decay must be in \[0, 1\), got 1.0"),
        ({"max_skipped": -1}, "--max-skipped must not be negative"),
    ],
)
def test_settings_that_cannot_work_name_their_flag(change: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OptimizerSettings(**change)
