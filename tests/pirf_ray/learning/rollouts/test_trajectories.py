"""Trajectories: the chain, its log densities, its rewards."""

import math
from typing import Any

import pytest
import torch
from torch.distributions import Normal

from envs.numerics import seeding
from pirf_ray.learning.rollouts.records import Trajectory
from pirf_ray.learning.rollouts.sources import ROLLOUT_STREAM, RolloutWorker
from pirf_ray.training.settings import TrainConfig
from recorded_reward import RecordedReward
from tiny_models import RESOLUTION, tiny_config, tiny_denoiser, tiny_worker

SHAPE = (1, RESOLUTION, RESOLUTION)
CHAIN: dict[str, Any] = {
    "objective": "policy-gradient",
    "solver": "stochastic",
    "eta": 0.8,
    "num_steps": 4,
    "truncation": 3,
    "regularizers": ("l2",),
    "strategy": "fresh",
    "group": 2,
}


def chains(**settings: Any) -> TrainConfig:
    return tiny_config(**{**CHAIN, **settings})


def made(config: TrainConfig, chunk: int = 3, reward: RecordedReward | None = None) -> tuple[Trajectory, RolloutWorker]:
    """Return a chunk's chains of a policy whose tuned weights differ from the base model's, and their maker."""
    worker = tiny_worker(config, reward=reward)
    worker.load(dict(tiny_denoiser(seed=1).network.named_parameters()))
    return worker.make(chunk, 7), worker


def test_a_chain_is_the_policys_steps_with_the_noise_of_its_samples() -> None:
    """Draw 0 of a sample is its first noise, draw i + 1 the noise of step i. The tolerance is rounding: 1e-5 of each state."""
    config = chains()
    chain, worker = made(config)
    ids, process = (6, 7), config.process
    assert (chain.sample_ids, chain.groups, chain.policy_version) == (ids, (3, 3), 7)
    assert chain.steps == (0, 1, 2, 3, 4) and chain.parents == (-1, 0, 1, 2, 3) and chain.leaves == (4,)
    noise = seeding.NoiseStream(config.seed, ROLLOUT_STREAM, ids)
    state = process.initial(noise.draw(SHAPE).float())
    denoiser_from = worker.policies.tuned.denoisers(process)
    with torch.no_grad():
        for step in range(4):
            torch.testing.assert_close(chain.x[step], state.x, rtol=1e-5, atol=1e-5 * state.x.abs().max().item())
            drawn = noise.draw(SHAPE).float() if step < 3 else None
            state = process.transition(state, denoiser_from(process.sigmas[step])(*process.observe(state)), drawn)
    torch.testing.assert_close(chain.x[4], state.x, rtol=1e-4, atol=1e-5)
    assert chain.x.dtype == torch.float32 and not chain.x.requires_grad


def by_hand(config: TrainConfig, x: torch.Tensor, denoised: torch.Tensor, step: int) -> Normal:
    """Return N(m, c^2): c = eta s' sqrt(1 - (s'/s)^2), m = D + sqrt(s'^2 - c^2) / s (x - D), float64."""
    s, after = config.process.sigmas[step], config.process.sigmas[step + 1]
    c = config.sampler.eta * after * math.sqrt(1 - (after / s) ** 2)
    return Normal(denoised.double() + math.sqrt(after**2 - c**2) / s * (x - denoised).double(), c)


def test_log_densities_are_those_of_normal_laws() -> None:
    """The log density leaves out the constant that the standard deviation alone decides, d ln c + d/2 ln 2 pi.

    The whitened step z has 64 entries of size 1, and |z|^2 / 2 is about 32. z is a difference of float32 numbers of the size
    s' <= 80 over c, and s' / c is at most 1 / (eta sqrt(1 - (s'/s)^2)) < 1.5 here. So an entry of z is off by about 1e-7 of 1.5,
    and the sum by less than 64 * 3 * 1e-7 = 2e-5 and its own rounding. The tolerance is 1e-4 of 32.
    """
    config = chains()
    chain, worker = made(config)
    policies, dimensions = worker.policies, chain.x[0, 0].numel()
    for node in (1, 2, 3):
        step, x = chain.steps[chain.parents[node]], chain.x[chain.parents[node]]
        sigma = config.process.sigmas[step]
        columns = (
            (policies.tuned.denoisers(config.process), chain.mean, chain.log_density),
            (policies.base.denoisers(config.process), chain.base_mean, chain.base_log_density),
        )
        for denoiser_from, mean, log_density in columns:
            with torch.no_grad():
                law = by_hand(config, x, denoiser_from(sigma)(x, sigma), step)
            constant = dimensions * (math.log(law.scale.flatten()[0].item()) + 0.5 * math.log(2 * math.pi))
            expected = law.log_prob(chain.x[node].double()).flatten(1).sum(1) + constant
            torch.testing.assert_close(log_density[node].double(), expected, rtol=1e-3, atol=3e-3)
            torch.testing.assert_close(mean[node].double(), law.loc, rtol=1e-4, atol=1e-5 * sigma)


def test_steps_of_the_base_model_have_equal_densities() -> None:
    """With scope ``tail`` the base model makes the first N - K steps, so both laws are one there."""
    chain, _ = made(chains(scope="tail", truncation=2))
    assert torch.equal(chain.log_density[:3], chain.base_log_density[:3])
    assert not torch.equal(chain.log_density[3], chain.base_log_density[3])


@pytest.mark.parametrize("solver", ["heun", "euler", "2m", "stochastic"])
def test_the_density_of_a_deterministic_step_is_zero_and_its_mean_the_state(solver: str) -> None:
    stochastic = solver == "stochastic"
    settings = {"objective": "surrogate", "credit": "none", "solver": solver, **({} if stochastic else {"eta": 1.0})}
    chain, _ = made(chains(**settings))
    fixed = [0, 4] if stochastic else list(range(5))
    for density, mean in ((chain.log_density, chain.mean), (chain.base_log_density, chain.base_mean)):
        assert not density[fixed].any() and torch.equal(mean[fixed], chain.x[fixed])
        assert bool(density.any()) == stochastic


def test_the_end_is_rewarded_once_where_it_is_made() -> None:
    """The reward is a black box. It gets physical fields without a graph, one call per chunk."""
    reward = RecordedReward()
    chain, worker = made(chains(), reward=reward)
    (call,) = reward.calls
    assert torch.equal(call.fields, worker.env.pde.normalizer.to_physical(chain.x[4])) and not call.with_graph
    torch.testing.assert_close(chain.reward, -call.fields.square().flatten(1).mean(1)[None])
    torch.testing.assert_close(chain.parts["largest"], call.fields.abs().flatten(1).amax(1)[None])


def test_violations_stand_beside_the_reward() -> None:
    chain, worker = made(chains())
    physical = worker.env.pde.normalizer.to_physical(chain.x[4])
    out = worker.env.reward(physical)
    assert chain.parts.keys() == out.violations.keys() | out.parts.keys()
    for name, violation in out.violations.items():
        torch.testing.assert_close(chain.parts[name], violation[None])


def test_the_references_densities_can_be_left_out() -> None:
    chain, _ = made(chains(reference_densities=False))
    assert chain.base_mean is None and chain.base_log_density is None
    whole, _ = made(chains())
    assert torch.equal(chain.x, whole.x) and torch.equal(chain.log_density, whole.log_density)


def test_a_moved_reference_makes_the_reference_densities() -> None:
    """The reference's learning tensors are published with a prefix of their own. At the tuned weights both densities are one."""
    worker = tiny_worker(chains())
    tensors = dict(tiny_denoiser(seed=1).network.named_parameters())
    worker.load({**tensors, **{f"reference/{name}": tensor for name, tensor in tensors.items()}})
    chain = worker.make(3, 7)
    torch.testing.assert_close(chain.base_log_density, chain.log_density, rtol=1e-5, atol=1e-4)
    assert not torch.allclose(made(chains())[0].base_log_density, chain.base_log_density, rtol=1e-3, atol=1e-2)
