"""Users' functions and objects as rewards: gradients where promised, errors that name the reward, and how they are found."""

import pickle
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from envs.common import registry
from envs.common.parts import PartSettings
from envs.pdes import make_pde
from envs.rewards import (
    REWARDS,
    Checked,
    CommandReward,
    CommandSettings,
    FunctionReward,
    PhysicsReward,
    RewardOutput,
    RewardSettings,
    find_reward,
    reward_settings,
)
from registries import restored

PDE = make_pde("Poisson-v0", 8)
MODULE = "users_rewards"
SOURCE = """
from dataclasses import dataclass
import torch
from envs.common.parts import PartSettings
from envs.rewards import RewardOutput, register, reward

@reward("energy")
def energy(fields):
    "Minus the mean square."
    return -fields.square().flatten(1).mean(1)

@reward("largest", differentiable=False, scope="set")
def found_by_its_registered_name(fields):
    return fields.detach().numpy().max((1, 2, 3))

@dataclass(frozen=True, kw_only=True)
class ScaleSettings(PartSettings):
    scale: float = 2.0

@register("scaled")
class Scaled:
    differentiable, scope = True, "sample"
    Settings = ScaleSettings
    def __init__(self, settings, pde):
        self.settings, self.pde = settings, pde
    def __call__(self, fields, condition=None):
        return RewardOutput(reward=self.settings.scale * fields.flatten(1).mean(1))
    def parameters(self):
        return [1]

class OfPDE:
    differentiable, scope = False, "sample"
    def __init__(self, pde):
        self.pde = pde
    def __call__(self, fields, condition=None):
        return RewardOutput(reward=fields.new_full((len(fields),), float(self.pde.resolution)))

class WithoutPDE(OfPDE):
    def __init__(self):
        pass

ready = Scaled(ScaleSettings(scale=3.0), None)
number = 3
def plain(fields):
    return fields.flatten(1).mean(1)
"""


def amplitude(fields: torch.Tensor) -> torch.Tensor:
    return fields.square().flatten(1).mean(1)


def as_array(fields: torch.Tensor) -> Any:
    return fields.numpy().astype(np.float64).max((1, 2, 3))


class Returns:
    """A reward object that returns what it is given."""

    def __init__(self, output: Any, differentiable: Any = True, scope: Any = "sample") -> None:
        self.output, self.differentiable, self.scope = output, differentiable, scope

    def __call__(self, fields: torch.Tensor, condition: Any = None) -> Any:
        return self.output(fields) if callable(self.output) else self.output


def fields(*, grad: bool = False, batch: int = 3) -> torch.Tensor:
    made = torch.arange(batch * 128, dtype=torch.float32).reshape(batch, *PDE.shape) / 100
    return made.requires_grad_(grad)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A user's module with rewards. Its names leave the registry with it."""
    (tmp_path / f"{MODULE}.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(registry.VARIABLE, "")
    restored(REWARDS, monkeypatch)
    yield MODULE
    sys.modules.pop(MODULE, None)


def test_a_differentiable_function_has_its_gradient() -> None:
    """d mean(x^2) / dx = 2 x / 128 for the 128 entries of a field."""
    x = fields(grad=True)
    output = FunctionReward(amplitude, differentiable=True)(x)
    (gradient,) = torch.autograd.grad(output.reward.sum(), x)
    torch.testing.assert_close(gradient, 2 * x.detach() / 128)


def test_a_function_without_gradient_has_none_and_may_return_arrays() -> None:
    x = fields(grad=True)
    output = FunctionReward(as_array, differentiable=False)(x)
    assert not output.reward.requires_grad and output.reward.dtype == x.dtype
    assert torch.equal(output.reward, x.detach().amax((1, 2, 3)))
    assert not FunctionReward(amplitude, differentiable=False)(x).reward.requires_grad


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda f: f.mean(), ValueError, r"'reward' of reward 'mine' must have one number per sample, shape \(3,\), got \(\)"),
        (lambda f: f.flatten(2).mean(2), ValueError, r"reward 'mine' must have one number per sample, .* got \(3, 2\)"),
        (lambda f: None, TypeError, r"reward 'mine' must return a tensor \(b,\), got NoneType"),
        (lambda f: ["a", "b", "c"], TypeError, r"reward 'mine' must return a tensor \(b,\), got list"),
    ],
)
def test_wrong_results_of_functions_name_the_reward(function: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        FunctionReward(function, differentiable=False, name="mine")(fields())


def test_function_rewards_travel_between_processes() -> None:
    sent = pickle.loads(pickle.dumps(FunctionReward(amplitude, differentiable=True, scope="set")))
    assert (sent.name, sent.scope, sent.differentiable) == ("amplitude", "set", True)
    assert torch.equal(sent(fields()).reward, amplitude(fields()))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (3, "got int without differentiable, scope, __call__"),
        (amplitude, "got function without differentiable, scope"),
        (Returns, "got the class Returns"),
        (Returns(0, scope="batch"), "scope is one of sample, set and differentiable a bool, got scope 'batch'"),
        (Returns(0, differentiable="yes"), "got scope 'sample' and differentiable 'yes'"),
    ],
)
def test_objects_that_are_no_rewards_are_refused_at_once(wrong: Any, message: str) -> None:
    with pytest.raises(TypeError, match=rf"reward 'mine' must be a Reward \(envs.rewards.base.Reward\).*{message}"):
        Checked(wrong, "mine")


def test_a_reward_that_takes_no_condition_is_refused_at_once() -> None:
    class Old:
        differentiable, scope = True, "sample"

        def __call__(self, fields: torch.Tensor) -> RewardOutput:
            return RewardOutput(reward=amplitude(fields))

    with pytest.raises(TypeError, match=r"must be a Reward .*it is called with \(fields, condition\)"):
        Checked(Old(), "old")


@pytest.mark.parametrize(
    ("output", "error", "message"),
    [
        (amplitude, TypeError, r"reward 'mine' must return a RewardOutput \(envs.rewards.base.RewardOutput\), got Tensor"),
        (RewardOutput(reward=torch.zeros(2)), ValueError, r"shape \(3,\), got \(2,\)"),
        (RewardOutput(reward=0.0), TypeError, r"'reward' of reward 'mine' must be a tensor \(3,\), got float"),  # type: ignore[arg-type]
        (RewardOutput(reward=torch.zeros(3), parts={"drag": torch.zeros(3, 1)}), ValueError, r"'drag' of reward 'mine'"),
        (
            lambda f: RewardOutput(reward=f.flatten(1).mean(1) / torch.tensor([1.0, 0.0, 1.0])),
            ValueError,
            "reward 'mine' is inf for sample 1 of 3, whose field is finite",
        ),
        (
            lambda f: RewardOutput(reward=amplitude(f.detach())),
            ValueError,
            r"reward 'mine' promises a gradient \(differentiable = True\), but its output has none",
        ),
    ],
)
def test_wrong_outputs_at_the_first_call_name_the_reward(output: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        Checked(Returns(output), "mine")(fields(grad=True))


def test_a_field_that_is_not_finite_may_have_a_reward_that_is_not_finite() -> None:
    """A policy that fails makes such fields. The loop counts them; the reward is not to blame."""
    x = fields()
    x[1, 0, 0, 0] = torch.nan
    assert Checked(Returns(lambda f: RewardOutput(reward=amplitude(f))), "mine")(x).reward.isnan().tolist() == [
        False,
        True,
        False,
    ]


def test_checked_rewards_have_no_gradient_unless_promised() -> None:
    inner = Returns(lambda f: RewardOutput(reward=amplitude(f)), differentiable=False)
    assert not Checked(inner, "mine")(fields(grad=True)).reward.requires_grad


def test_rewards_of_a_module_are_found_by_name(module: str) -> None:
    energy = find_reward(f"{module}:energy", PDE)
    x = fields(grad=True)
    assert (energy.differentiable, energy.scope) == (True, "sample")
    (gradient,) = torch.autograd.grad(energy(x).reward.sum(), x)
    torch.testing.assert_close(gradient, -2 * x.detach() / 128)
    assert ["energy", "Minus the mean square."] in [line.split(maxsplit=1) for line in REWARDS.describe()]
    largest = find_reward(f"{module}:largest", PDE)
    assert (largest.differentiable, largest.scope) == (False, "set")
    assert torch.equal(largest(x).reward, x.detach().amax((1, 2, 3)))
    assert torch.equal(find_reward("energy", PDE)(x).reward, energy(x).reward), "a registered name needs no module"


def test_settings_reach_the_reward_that_owns_them(module: str) -> None:
    kind = reward_settings(f"{module}:scaled")
    made: Any = find_reward(f"{module}:scaled", PDE, kind(scale=5.0))  # type: ignore[call-arg]
    torch.testing.assert_close(made(fields()).reward, 5 * fields().flatten(1).mean(1))
    assert made.pde is PDE and made.parameters() == [1], "members of the user's object are reached"
    assert reward_settings("physics") is RewardSettings
    assert reward_settings("command:cat") is CommandSettings
    assert reward_settings(f"{module}:ready") is PartSettings


def test_attributes_of_a_module_are_rewards_too(module: str) -> None:
    assert find_reward(f"{module}:ready", PDE)(fields()).reward[0] == pytest.approx(3 * 0.635)  # the mean of 0, .01, ..., 1.27
    assert find_reward(f"{module}:OfPDE", PDE)(fields()).reward.tolist() == [8, 8, 8]


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("number", TypeError, r"reward 'users_rewards:number' must be a Reward \(envs.rewards.base.Reward\), got int"),
        ("plain", TypeError, r"must be a Reward \(envs.rewards.base.Reward\), got function without differentiable, scope"),
        ("WithoutPDE", TypeError, r"reward 'users_rewards:WithoutPDE': a class that is not registered is made with \(pde\)"),
        ("nothing", ValueError, r"--reward: unknown reward 'users_rewards:nothing'; known: .*physics.*; your own: module:name"),
    ],
)
def test_wrong_names_of_a_module_are_refused(module: str, name: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        find_reward(f"{module}:{name}", PDE)


def test_found_rewards_travel_between_processes(module: str) -> None:
    for name in ("energy", "scaled"):
        made = find_reward(f"{module}:{name}", PDE)
        assert torch.equal(pickle.loads(pickle.dumps(made))(fields()).reward, made(fields()).reward)


def test_physics_and_commands_are_found() -> None:
    physics = find_reward("physics", PDE, RewardSettings(reward_form="plain"))
    assert isinstance(physics, PhysicsReward) and physics.form == "plain"
    command = find_reward("command:cat -u 'a b'", PDE, CommandSettings(reward_time_limit=2.0, reward_restarts=1))
    assert isinstance(command, CommandReward) and not command.differentiable
    assert command.command[1:] == ("-u", "a b") and Path(command.command[0]).is_absolute()
    assert (command.settings.reward_time_limit, command.settings.reward_restarts) == (2.0, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("wind", r"--reward: unknown reward 'wind'; known: .*physics.*; your own: module:name, or command:PROGRAM ARGS"),
        ("nowhere_at_all:wind", "--reward nowhere_at_all:...: no module 'nowhere_at_all'"),
        ("command:", "--reward command: needs a program"),
        ("command:no_such_program", "--reward command: no program 'no_such_program' on the PATH or in "),
        ("command:cat 'a", "--reward command:cat 'a: No closing quotation"),
    ],
)
def test_rewards_that_are_not_there_are_named(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_reward(text, PDE)
