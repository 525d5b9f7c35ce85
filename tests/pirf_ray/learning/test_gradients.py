"""Gradients in float64: what truncation of steps and layers keeps and cuts."""

import pytest
import torch

from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from envs.pdes import make_pde
from envs.rewards import physics_reward
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.policy import Policy, switch_sigma
from pirf_ray.diffusion.sampling import advance
from pirf_ray.learning.parameters import layers
from pirf_ray.learning.rollouts.prefixes import replay
from pirf_ray.learning.rollouts.records import Prefix
from tiny_models import RESOLUTION, tiny_denoiser

STEPS = 4
BATCH = 2


def policy_of(levels: int = 0, mode: layers.LayerMode = "freeze", *, scope: str = "all", k: int = STEPS) -> Policy:
    policy = Policy(tiny_denoiser(dtype=torch.float64), scope=scope, switch_sigma=switch_sigma(process(), k))
    layers.prepare(policy.tuned, levels, mode)
    return policy


def process(solver: str = "heun") -> DenoisingProcess:
    return DenoisingProcess(STEPS, solver)


def noise() -> torch.Tensor:
    return seeding.normal(0, "test", range(BATCH), (1, RESOLUTION, RESOLUTION))


def reward_sum(x: torch.Tensor) -> torch.Tensor:
    pde = make_pde("Burgers-v0", RESOLUTION)
    return physics_reward(pde, form="log", condition_weight=0.1)(pde.normalizer.to_physical(x)).reward.sum()


def gradients(loss: torch.Tensor, denoiser: Denoiser) -> dict[str, torch.Tensor]:
    named = {n: p for n, p in denoiser.network.named_parameters() if p.requires_grad}
    values = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), values, strict=True)}


def plain_sampler(denoiser: Denoiser, x: torch.Tensor, detach_at: int | None = None, solver: str = "heun") -> torch.Tensor:
    """Return a sample by EDM's algorithm 1, written out by hand. The state is detached before step ``detach_at``."""
    sigmas = process().sigmas
    x = sigmas[0] * x
    for i in range(STEPS):
        if i == detach_at:
            x = x.detach()
        here, there = sigmas[i], sigmas[i + 1]
        d = (x - denoiser(x, here)) / here
        x_next = x + (there - here) * d
        if solver == "heun" and there > 0:
            d_next = (x_next - denoiser(x_next, there)) / there
            x_next = x + (there - here) * (d + d_next) / 2
        x = x_next
    return x


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    scale = max(g.abs().max().item() for g in b.values())
    assert scale > 0
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-8, atol=1e-10 * scale, msg=name)


@torch.no_grad()
def prefix_of(policy: Policy, k: int, solver: str = "heun") -> Prefix:
    state = advance(process(solver), policy.denoisers(process(solver)), process(solver).initial(noise()), STEPS - k)
    return Prefix(sample_ids=tuple(range(BATCH)), x=state.x, step=state.step, previous=state.previous)


def replayed(policy: Policy, k: int, solver: str = "heun") -> torch.Tensor:
    return replay(process(solver), policy, prefix_of(policy, k, solver))


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_replay_with_k_equal_n_is_plain_autograd(solver: str) -> None:
    policy = policy_of()
    expected = gradients(reward_sum(plain_sampler(policy.tuned, noise(), solver=solver)), policy.tuned)
    assert_same(gradients(reward_sum(replayed(policy, STEPS, solver)), policy.tuned), expected)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_replay_with_k_below_n_leaves_exactly_the_earlier_part_out(k: int) -> None:
    policy = policy_of()
    expected = gradients(reward_sum(plain_sampler(policy.tuned, noise(), detach_at=STEPS - k)), policy.tuned)
    assert_same(gradients(reward_sum(replayed(policy, k)), policy.tuned), expected)
    full = gradients(reward_sum(plain_sampler(policy.tuned, noise())), policy.tuned)
    name = "dec.8x8_aux_conv.weight"
    assert not torch.allclose(full[name], expected[name], rtol=1e-3)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_replay_evaluates_the_network_2k_minus_1_times(k: int) -> None:
    policy = policy_of()
    calls = []
    policy.tuned.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    replayed(policy, k)
    assert calls.count(True) == 2 * k - 1 == process().evaluations_from(STEPS - k)
    assert len(calls) == 2 * STEPS - 1 == process().num_evaluations


@pytest.mark.parametrize("levels", [1, 2])
def test_freeze_is_the_full_gradient_restricted_to_the_learning_tensors(levels: int) -> None:
    frozen, full = policy_of(levels, "freeze"), policy_of()
    expected = gradients(reward_sum(replayed(full, 2)), full.tuned)
    found = gradients(reward_sum(replayed(frozen, 2)), frozen.tuned)
    assert set(found) < set(expected)
    assert_same(found, {name: expected[name] for name in found})


def test_truncate_equals_freeze_for_one_evaluation() -> None:
    """With K = 1 nothing that learns lies before the learning blocks, so a cut at their inputs changes nothing."""
    freeze, truncate = policy_of(1, "freeze"), policy_of(1, "truncate")
    assert_same(
        gradients(reward_sum(replayed(truncate, 1)), truncate.tuned), gradients(reward_sum(replayed(freeze, 1)), freeze.tuned)
    )


def test_truncate_keeps_only_the_skip_path_to_the_earlier_state() -> None:
    """The gradient is cut at the inputs of the learning blocks, so dD/dx is c_skip only."""
    policy, sigma = policy_of(1, "truncate"), 0.3
    x = noise().requires_grad_()
    cotangent = seeding.normal(1, "test", range(BATCH), (1, RESOLUTION, RESOLUTION))
    (found,) = torch.autograd.grad((policy.tuned(x, sigma) * cotangent).sum(), x)
    sd = policy.tuned.sigma_data
    torch.testing.assert_close(found, sd**2 / (sd**2 + sigma**2) * cotangent)
    freeze = policy_of(1, "freeze")
    (exact,) = torch.autograd.grad((freeze.tuned(x, sigma) * cotangent).sum(), x)
    assert not torch.allclose(found, exact, rtol=1e-2)


def test_truncate_differs_from_freeze_for_more_evaluations() -> None:
    freeze, truncate = policy_of(1, "freeze"), policy_of(1, "truncate")
    a = gradients(reward_sum(replayed(truncate, 3)), truncate.tuned)
    b = gradients(reward_sum(replayed(freeze, 3)), freeze.tuned)
    assert not torch.allclose(a["dec.8x8_aux_conv.weight"], b["dec.8x8_aux_conv.weight"], rtol=1e-3)


def test_gradient_agrees_with_finite_differences() -> None:
    policy = policy_of()
    named = dict(policy.tuned.network.named_parameters())
    found = gradients(reward_sum(replayed(policy, 2)), policy.tuned)
    prefix = prefix_of(policy, 2)
    weight, index, step = named["dec.8x8_aux_conv.weight"], (0, 3, 1, 1), 1e-6
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            weight[index] += sign * step
            values.append(reward_sum(replay(process(), policy, prefix)).item())
            weight[index] -= sign * step
    expected = (values[0] - values[1]) / (2 * step)
    assert found["dec.8x8_aux_conv.weight"][index].item() == pytest.approx(expected, rel=1e-5)
