"""The reward seam: its example, its defaults, the zero reward and the registered rewards."""

import doctest
import importlib
import pickle

import pytest
import torch

from envs.common.parts import require_protocol
from envs.pdes import make_pde
from envs.rewards import REWARDS, NoReward, PhysicsReward, Reward, RewardOutput, RewardSettings, physics_reward, shaped
from registries import restored

PDE = make_pde("Poisson-v0", 8)
FIELDS = PDE.solve(0, "test", range(3)) + 0.01


@pytest.mark.parametrize("module", ["envs.rewards.base", "envs.rewards.functions"])
def test_the_examples_of_the_docstrings_run(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    restored(REWARDS, monkeypatch)
    done = doctest.testmod(importlib.import_module(module))
    assert done.attempted > 0 and done.failed == 0


def test_outputs_have_no_parts_unless_given() -> None:
    output = RewardOutput(reward=torch.zeros(2))
    assert output.parts == {} and output.violations == {}


def test_no_reward_is_zero_for_each_field() -> None:
    output = NoReward()(torch.ones(3, *PDE.shape, dtype=torch.float64))
    require_protocol(NoReward(), Reward, "reward")
    assert output.reward.tolist() == [0, 0, 0] and output.reward.dtype == torch.float64
    assert output.parts == {} and output.violations == {}
    assert isinstance(pickle.loads(pickle.dumps(NoReward())), NoReward)


def test_the_registered_physics_reward_is_the_reward_of_its_settings() -> None:
    settings = RewardSettings(reward_form="plain", condition_weight=0.2)
    made, wanted = REWARDS.make("physics", settings, PDE), settings.make(PDE)
    assert isinstance(made, PhysicsReward) and made.scope == "sample" and made.differentiable
    assert torch.equal(made(FIELDS).reward, wanted(FIELDS).reward)
    assert REWARDS.settings("physics") == RewardSettings()


def test_the_registered_physics_reward_refuses_a_term_that_the_pde_lacks() -> None:
    with pytest.raises(ValueError, match=r"--weights: Poisson-v0 has no term wind; known: .*wall"):
        REWARDS.make("physics", RewardSettings(weights={"wind": 1.0}), PDE)


def test_parts_of_the_physics_reward_are_its_shaped_terms() -> None:
    """Their weighted sum is the reward. A condition changes nothing."""
    reward = physics_reward(PDE, form="log", condition_weight=0.1)
    output = reward(FIELDS, {"weight": torch.ones(3)})
    for term in reward.terms:
        violation = output.violations[term.name]
        assert torch.equal(output.parts[term.name], shaped(violation, "log", floor=term.floor, reference=term.reference))
    torch.testing.assert_close(output.reward, sum(term.weight * output.parts[term.name] for term in reward.terms))
    assert torch.equal(output.reward, reward(FIELDS).reward)
