"""Gradient truth, float64: what truncation of steps and layers keeps and cuts."""

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
    """EDM's algorithm 1 written out by hand, the state detached before step ``detach_at``."""
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


def replayed(policy: Policy, k: int, solver: str = "heun") -> torch.Tensor:
    with torch.no_grad():
        prefix = advance(process(solver), policy.denoisers(process(solver)), process(solver).initial(noise()), STEPS - k)
    return replay(process(solver), policy, prefix.x, prefix.step)


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


def test_top_level_holds_the_highest_resolution_blocks_and_the_output_layer() -> None:
    names = layers.learning_names(tiny_denoiser(), 1)
    assert {n.split(".")[0] + "." + n.split(".")[1] for n in names} == {
        "dec.8x8_up",
        "dec.8x8_block0",
        "dec.8x8_block1",
        "dec.8x8_aux_norm",
        "dec.8x8_aux_conv",
    }


@pytest.mark.parametrize("levels", [-1, 3])
def test_levels_outside_the_network_are_refused(levels: int) -> None:
    with pytest.raises(ValueError, match=rf"--levels must be in \[0, 2\].*got {levels}"):
        layers.learning_names(tiny_denoiser(), levels)


def test_truncate_equals_freeze_for_one_evaluation() -> None:
    """K = 1: nothing lies before the learning blocks that learns, so cutting at their inputs changes nothing."""
    freeze, truncate = policy_of(1, "freeze"), policy_of(1, "truncate")
    assert_same(
        gradients(reward_sum(replayed(truncate, 1)), truncate.tuned), gradients(reward_sum(replayed(freeze, 1)), freeze.tuned)
    )


def test_truncate_keeps_only_the_skip_path_to_the_earlier_state() -> None:
    """Documented difference: dD/dx is c_skip alone, since the gradient is cut at the inputs of the learning blocks."""
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
    with torch.no_grad():
        prefix = advance(process(), policy.denoisers(process()), process().initial(noise()), STEPS - 2)
    weight, index, step = named["dec.8x8_aux_conv.weight"], (0, 3, 1, 1), 1e-6
    values = []
    with torch.no_grad():
        for sign in (1, -1):
            weight[index] += sign * step
            values.append(reward_sum(replay(process(), policy, prefix.x, prefix.step)).item())
            weight[index] -= sign * step
    expected = (values[0] - values[1]) / (2 * step)
    assert found["dec.8x8_aux_conv.weight"][index].item() == pytest.approx(expected, rel=1e-5)


def test_tail_scope_uses_base_weights_before_the_switch_and_tuned_ones_after() -> None:
    policy = policy_of(scope="tail", k=2)
    used: list[tuple[str, float]] = []
    policy.base.register_forward_hook(lambda _, args, __: used.append(("base", round(float(args[1]), 6))))
    policy.tuned.register_forward_hook(lambda _, args, __: used.append(("tuned", round(float(args[1]), 6))))
    replayed(policy, 2)
    s = [round(v, 6) for v in process().sigmas]
    # The corrector at the switch, s[2], ends the prefix: it is still the base's.
    expected = [("base", s[0]), ("base", s[1]), ("base", s[1]), ("base", s[2])]
    assert used == [*expected, ("tuned", s[2]), ("tuned", s[3]), ("tuned", s[3])]


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("mode", ["freeze", "truncate"])
def test_top_levels_learn_in_the_layout_of_training(levels: int, mode: layers.LayerMode) -> None:
    """Channels-last fields, a frozen trunk: the same gradients as in the plain layout (torch alone ends in a segmentation fault)."""
    x = torch.randn(2, 1, RESOLUTION, RESOLUTION, generator=torch.Generator().manual_seed(0))
    gradients = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        denoiser = tiny_denoiser().to(memory_format=memory_format)
        learning = layers.prepare(denoiser, levels, mode)
        denoiser(x.contiguous(memory_format=memory_format), 0.1).square().sum().backward()
        gradients.append([p.grad for p in learning.values()])
    for plain, last in zip(*gradients, strict=True):
        torch.testing.assert_close(last, plain, rtol=1e-4, atol=1e-5)
