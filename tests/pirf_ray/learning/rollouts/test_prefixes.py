"""Prefixes: the steps that make them, and their replay."""

from typing import Any

import gymnasium
import pytest
import torch

from envs.denoising import State
from envs.numerics import seeding
from envs.rewards import NoReward
from pirf_ray.diffusion.policies import Policies
from pirf_ray.diffusion.sampling import advance, finish
from pirf_ray.learning.parameters import layers
from pirf_ray.learning.rollouts.base import MakerContext, Requests
from pirf_ray.learning.rollouts.prefixes import PrefixMaker, replay, step_until
from pirf_ray.learning.rollouts.records import Prefix
from pirf_ray.training.settings import TrainConfig
from tiny_models import RESOLUTION, tiny_config, tiny_denoiser, tiny_worker

CONFIG = tiny_config(scope="all", strategy="fresh", anchor=1.0)
SHAPE = (1, RESOLUTION, RESOLUTION)


def tuned_policies(config: TrainConfig = CONFIG) -> Policies:
    """Return policies whose tuned weights differ from the base model's."""
    policies = tiny_worker(config).policies
    policies.tuned.load_learned(dict(tiny_denoiser(seed=1).network.named_parameters()))
    return policies


def made(ids: tuple[int, ...] = (4, 2), *, config: TrainConfig = CONFIG, with_base_output: bool = True, **changes: Any) -> Prefix:
    worker = tiny_worker(config)
    maker = PrefixMaker(config.maker_settings, MakerContext(stop_step=config.prefix_steps, with_base_output=with_base_output))
    asked = {"groups": tuple(i // 2 for i in ids), "seed": 3, "stream": "t", "version": 5, **changes}
    with torch.no_grad():
        return maker.make(worker.env, tuned_policies(config), Requests(sample_ids=ids, **asked))


def test_a_prefix_is_the_policys_first_steps_from_the_noise_of_its_samples() -> None:
    policy, process = tuned_policies().tuned, CONFIG.process
    prefix = made()
    start = process.initial(seeding.normal(3, "t", (4, 2), SHAPE).float())
    with torch.no_grad():
        expected = advance(process, policy.denoisers(process), start, CONFIG.prefix_steps)
        base = finish(process, policy.base_from, expected)
    torch.testing.assert_close(prefix.x, expected.x, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prefix.base_output, base, rtol=1e-5, atol=1e-5)
    assert (prefix.step, prefix.sample_ids, prefix.policy_version) == (CONFIG.prefix_steps, (4, 2), 5)
    assert (prefix.groups, prefix.condition) == ((2, 1), None)
    assert not prefix.x.requires_grad and prefix.x.dtype == torch.float32
    assert made(with_base_output=False).base_output is None


def test_a_prefix_of_2m_holds_the_history_that_its_next_step_needs() -> None:
    """The replay of the last steps is the end of the whole episode only with the last denoised prediction."""
    config = CONFIG.with_settings(solver="2m")
    policy, process, prefix = tuned_policies(config).tuned, config.process, made(config=config)
    start = process.initial(seeding.normal(3, "t", (4, 2), SHAPE).float())
    with torch.no_grad():
        whole = finish(process, policy.denoisers(process), start)
        replayed = replay(process, policy, prefix)
        forgetful = finish(process, policy.denoisers(process), State(x=prefix.x, step=prefix.step))
    torch.testing.assert_close(replayed, whole, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(forgetful, whole, rtol=1e-3, atol=1e-3)
    assert made().previous is None  # Heun's steps have no history


def test_stepping_the_environment_stops_at_the_start_of_a_step() -> None:
    env = tiny_worker(CONFIG).env
    for stop in range(CONFIG.sampler.num_steps + 1):
        env.reset(seed=0, options={"sample_ids": (0, 1), "stream": "t"})
        with torch.no_grad():
            state = step_until(env, tuned_policies().tuned, stop)
        assert (state.step, state.slope) == (stop, None)


def test_replay_ends_what_the_prefix_began() -> None:
    policy, process, prefix = tuned_policies().tuned, CONFIG.process, made()
    layers.prepare(policy.tuned, 0, "freeze")
    x = replay(process, policy, prefix)
    with torch.no_grad():
        expected = finish(process, policy.denoisers(process), State(x=prefix.x, step=prefix.step))
    torch.testing.assert_close(x.detach(), expected, rtol=1e-5, atol=1e-6)
    assert x.requires_grad and not expected.requires_grad


def test_prefixes_are_made_without_a_reward() -> None:
    """The environment of the workers has the reward 0, so no residual is computed."""
    assert isinstance(tiny_worker(CONFIG).env.reward, NoReward)
    out = NoReward()(torch.ones(3, *SHAPE))
    assert out.reward.tolist() == [0, 0, 0] and out.violations == {}


def test_the_environment_is_the_one_that_gymnasium_makes() -> None:
    env = CONFIG.rollout_task({}).make_env(NoReward())
    assert env.num_envs == CONFIG.rollout.chunk
    assert env.process.sigmas == CONFIG.process.sigmas
    with pytest.raises(gymnasium.error.NameNotFound, match="Stokes"):
        tiny_config(env="Stokes-v0").rollout_task({}).make_env(NoReward())


def test_the_parameters_of_the_pde_reach_the_environment() -> None:
    env = tiny_config(env="Kolmogorov-v0").rollout_task({"reynolds": 250.0}).make_env(NoReward())
    assert env.parameters["reynolds"] == 250.0
