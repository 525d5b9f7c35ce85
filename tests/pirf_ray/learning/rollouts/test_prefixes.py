"""Prefixes: the steps that make them, their way between processes, their replay."""

import pickle
from typing import Any

import gymnasium
import pytest
import torch

from envs.denoising import State
from envs.numerics import seeding
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import advance, finish
from pirf_ray.learning.parameters import layers
from pirf_ray.learning.rollouts.prefixes import NoReward, Prefix, join, make_prefix, replay, step_until
from tiny_models import RESOLUTION, tiny_config, tiny_denoiser, tiny_policy

CONFIG = tiny_config(scope="all", strategy="fresh", anchor=1.0)
SHAPE = (1, RESOLUTION, RESOLUTION)


def tuned_policy() -> Policy:
    """Return a policy whose tuned weights differ from the base model's."""
    policy = tiny_policy(CONFIG)
    policy.load_learned(dict(tiny_denoiser(seed=1).network.named_parameters()))
    return policy


def made(ids: tuple[int, ...] = (4, 2), **changes: Any) -> Prefix:
    task = CONFIG.prefix_task({})
    options: dict[str, Any] = {"seed": 3, "stream": "t", "stop_step": CONFIG.prefix_steps, "policy_version": 5}
    return make_prefix(task.make_env(), tuned_policy(), sample_ids=ids, **{**options, "with_base_output": True, **changes})


def test_a_prefix_is_the_policys_first_steps_from_the_noise_of_its_samples() -> None:
    policy, process = tuned_policy(), CONFIG.process
    prefix = made()
    start = process.initial(seeding.normal(3, "t", (4, 2), SHAPE).float())
    with torch.no_grad():
        expected = advance(process, policy.denoisers(process), start, CONFIG.prefix_steps)
        base = finish(process, policy.base_from, expected)
    torch.testing.assert_close(prefix.x, expected.x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prefix.base_output, base, rtol=1e-5, atol=1e-5)
    assert (prefix.step, prefix.sample_ids, prefix.policy_version) == (CONFIG.prefix_steps, (4, 2), 5)
    assert not prefix.x.requires_grad and prefix.x.dtype == torch.float32
    assert made(with_base_output=False).base_output is None


def test_stepping_the_environment_stops_at_the_start_of_a_step() -> None:
    env = CONFIG.prefix_task({}).make_env()
    for stop in range(CONFIG.sampler.num_steps + 1):
        env.reset(seed=0, options={"sample_ids": (0, 1), "stream": "t"})
        with torch.no_grad():
            state = step_until(env, tuned_policy(), stop)
        assert (state.step, state.slope) == (stop, None)


def test_a_prefix_arrives_as_tensors_of_its_own() -> None:
    """numpy arrays from Ray are read-only: a tensor on their memory would warn, and could not be written."""
    prefix = made()
    arrived = pickle.loads(pickle.dumps(prefix))
    assert torch.equal(arrived.x, prefix.x) and torch.equal(arrived.base_output, prefix.base_output)
    assert arrived.sample_ids == prefix.sample_ids and arrived.policy_version == prefix.policy_version
    arrived.x.zero_()
    assert prefix.x.abs().sum() > 0
    assert pickle.loads(pickle.dumps(made(with_base_output=False))).base_output is None


def test_joined_prefixes_are_selected_again() -> None:
    first, second = made((4, 2)), made((7, 9), policy_version=3)
    both = join([first, second], "cpu")
    assert both.sample_ids == (4, 2, 7, 9)
    assert both.policy_version == 3  # the oldest
    assert torch.equal(both.x, torch.cat([first.x, second.x]))
    part = both.select(slice(2, 4))
    assert part.sample_ids == (7, 9) and torch.equal(part.x, second.x) and torch.equal(part.base_output, second.base_output)
    without = join([first, made((7, 9), with_base_output=False)], "cpu")
    assert without.base_output is None


def test_replay_ends_what_the_prefix_began() -> None:
    policy, process, prefix = tuned_policy(), CONFIG.process, made()
    layers.prepare(policy.tuned, 0, "freeze")
    x = replay(process, policy, prefix.x, prefix.step)
    with torch.no_grad():
        expected = finish(process, policy.denoisers(process), State(x=prefix.x, step=prefix.step))
    torch.testing.assert_close(x.detach(), expected, rtol=1e-5, atol=1e-6)
    assert x.requires_grad and not expected.requires_grad


def test_no_reward_is_zero_for_each_sample() -> None:
    out = NoReward()(torch.ones(3, *SHAPE))
    assert out.reward.tolist() == [0, 0, 0] and out.violations == {}


def test_the_environment_is_the_one_that_gymnasium_makes() -> None:
    env = CONFIG.prefix_task({}).make_env()
    assert env.num_envs == CONFIG.rollout.chunk
    assert env.process.sigmas == CONFIG.process.sigmas
    with pytest.raises(gymnasium.error.NameNotFound, match="Stokes"):
        tiny_config(env="Stokes-v0").prefix_task({}).make_env()
