"""The Gymnasium environments, single and vector, and the process they adapt."""

import warnings

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

import envs  # noqa: F401  (registers the environments)
from envs.denoising import DenoisingProcess, State
from envs.environments import DenoisingEnv, DenoisingVectorEnv
from envs.pdes import make_pde
from tiny_models import RESOLUTION

SMALL = {"resolution": RESOLUTION, "num_steps": 3}
INFINITE_BOX = "A Box (action|observation) space (minimum|maximum) value is -?infinity"


def vector(num_envs: int = 2, **changes: object) -> DenoisingVectorEnv:
    return gymnasium.make_vec("envs:Burgers-v0", num_envs=num_envs, **{**SMALL, **changes})


def run(env: DenoisingVectorEnv, policy, **reset: object) -> tuple[torch.Tensor, dict, int]:
    env.reset(**reset)
    for count in range(1, 100):
        _, reward, terminated, truncated, info = env.step(policy(*env.process.observe(env.state)))
        assert not truncated.any()
        if terminated.all():
            return reward, info, count
        assert not terminated.any()
        assert (reward == 0).all()
    raise AssertionError("the episode does not end")


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_check_env_passes(solver: str) -> None:
    env = gymnasium.make("envs:Burgers-v0", solver=solver, **SMALL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=f".*{INFINITE_BOX}")
        check_env(env.unwrapped)


def test_make_by_registered_id() -> None:
    env = gymnasium.make("envs:Burgers-v0", **SMALL)
    assert isinstance(env.unwrapped, DenoisingEnv)
    assert isinstance(vector(), DenoisingVectorEnv)
    default = gymnasium.make("Burgers-v0", reward=lambda fields: None)  # a reward of its own: no floor to measure
    assert default.observation_space["x"].shape == (1, 128, 128)


@pytest.mark.parametrize(("solver", "steps"), [("heun", 5), ("euler", 3)])
def test_one_step_is_one_network_evaluation(solver: str, steps: int) -> None:
    _, _, count = run(vector(solver=solver), lambda x, sigma: 0 * x)
    assert count == steps == DenoisingProcess(3, solver).num_evaluations


def test_single_environment_rewards_only_at_the_end() -> None:
    env = gymnasium.make("envs:Burgers-v0", **SMALL)
    env.reset(seed=1)
    rewards = []
    for _ in range(5):
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        rewards.append(reward)
        assert not truncated
    assert terminated
    assert rewards[:4] == [0, 0, 0, 0]
    assert rewards[4] < 0
    assert observation["sigma"] == 0
    assert info["fields"].shape == (1, RESOLUTION, RESOLUTION)
    assert info["violations"]["consistent"] == pytest.approx(-reward)


def test_do_nothing_policy_returns_noise_and_is_punished_more_than_a_solution() -> None:
    """D = x keeps x_0 = 80 n. Its residual is far above the residual of exact data as denoised prediction."""
    pde = make_pde("Burgers-v0", RESOLUTION)
    truth = pde.normalizer.to_model(pde.solve(0, "test", range(2))).float()
    idle, _, _ = run(vector(), lambda x, sigma: x)
    exact, info, _ = run(vector(), lambda x, sigma: truth)
    assert torch.isfinite(idle).all()
    assert (idle < 1e3 * exact).all()
    torch.testing.assert_close(info["fields"], pde.normalizer.to_physical(truth), rtol=1e-4, atol=1e-5)


def test_vector_environment_matches_the_single_one() -> None:
    single, many = gymnasium.make("envs:Burgers-v0", **SMALL).unwrapped, vector(num_envs=1)
    single.reset(seed=0)
    many.reset(seed=0)
    many._state = State(x=single._state.x, step=0)
    for _ in range(5):
        action = 0.1 * many.state.x
        ours, _, _, _, _ = single.step(action[0].numpy())
        theirs, reward, _, _, _ = many.step(action)
        np.testing.assert_array_equal(ours["x"], theirs["x"][0].numpy())
    assert reward[0] < 0


def test_vector_environment_is_lockstep_without_autoreset() -> None:
    env = vector()
    assert env.metadata["autoreset_mode"] is AutoresetMode.DISABLED
    assert env.observation_space["x"].shape == (2, 1, RESOLUTION, RESOLUTION)
    with pytest.raises(ValueError, match="all sub-environments end together"):
        env.reset(options={"reset_mask": np.array([True, False])})
    run(env, lambda x, sigma: 0 * x, options={"reset_mask": np.array([True, True])})
    with pytest.raises(ValueError, match="the episode is over after 3 steps; reset first"):
        env.step(torch.zeros(2, 1, RESOLUTION, RESOLUTION))


def test_gradients_pass_from_rewards_to_actions() -> None:
    env = vector()
    scale = torch.tensor(0.5, requires_grad=True)
    reward, _, _ = run(env, lambda x, sigma: scale * x, seed=0)
    (gradient,) = torch.autograd.grad(reward.sum(), scale)
    assert gradient.abs() > 0


def test_noise_belongs_to_the_sample_id_not_to_the_batch() -> None:
    both, alone = vector(2), vector(1)
    both.reset(seed=3, options={"sample_ids": [5, 9], "stream": "s"})
    alone.reset(seed=3, options={"sample_ids": [9], "stream": "s"})
    assert torch.equal(both.state.x[1], alone.state.x[0])
    both.reset(seed=3)
    first = both.state.x.clone()
    both.reset()
    assert not torch.equal(both.state.x, first)
    both.reset(seed=3)
    assert torch.equal(both.state.x, first)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resolution": 7}, "resolution must be even and at least 8, got 7"),
        ({"num_steps": 0}, "num_steps must be at least 1, got 0"),
        ({"solver": "rk4"}, r"unknown solver 'rk4'; known: \['euler', 'heun'\]"),
        ({"operator": "x"}, r"unknown operator 'x' of Burgers-v0; known: \['consistent', 'paper', 'simpson'\]"),
        ({"num_envs": 0}, "num_envs must be at least 1, got 0"),
    ],
)
def test_bad_arguments_are_named(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vector(**arguments)


def test_wrong_action_shape_is_named() -> None:
    env = vector()
    env.reset()
    with pytest.raises(ValueError, match=r"expected actions of shape \(2, 1, 8, 8\), got \(2, 1, 8, 4\)"):
        env.step(torch.zeros(2, 1, 8, 4))
