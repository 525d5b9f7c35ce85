"""Objectives that differentiate the reward: the evaluations with gradient, and the random draws."""

from collections.abc import Callable
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from envs.common.checks import ConfigError
from envs.denoising import DenoisingProcess, State
from envs.numerics import seeding
from envs.rewards.base import RewardOutput
from pirf_ray.diffusion.policy import Policy, switch_sigma
from pirf_ray.diffusion.sampling import Denoise, advance
from pirf_ray.learning.losses import Batch, Context, Loss
from pirf_ray.learning.objectives import OBJECTIVES, Objective
from pirf_ray.learning.objectives.draft_lv import REPEATS
from pirf_ray.learning.parameters import layers
from pirf_ray.learning.rollouts import Prefix, replay
from pirf_ray.metrics.cost import Meter
from tiny_models import RESOLUTION, tiny_denoiser, tiny_info

STEPS = 4
SHAPE = (1, RESOLUTION, RESOLUTION)


def policy(dtype: torch.dtype = torch.float64) -> Policy:
    made = Policy(tiny_denoiser(dtype=dtype), scope="all", switch_sigma=switch_sigma(DenoisingProcess(STEPS), STEPS))
    layers.prepare(made.tuned, 0, "freeze")
    return made


@cache
def prefix(k: int, ids: tuple[int, ...] = (0, 1), solver: str = "heun", dtype: torch.dtype = torch.float64) -> Prefix:
    process = DenoisingProcess(STEPS, solver)
    noise = seeding.normal(0, "test", ids, SHAPE).to(dtype)
    with torch.no_grad():
        x = advance(process, policy(dtype).base_from, process.initial(noise), STEPS - k).x
    return Prefix(x=x, step=STEPS - k, sample_ids=ids)


def calm(fields: torch.Tensor, condition: Any = None) -> RewardOutput:
    return RewardOutput(reward=-fields.square().flatten(1).sum(1))


def objective(name: str, k: int, solver: str = "heun") -> Objective:
    context = Context(process=DenoisingProcess(STEPS, solver), pde=tiny_info().pde(), truncation=k)
    return OBJECTIVES.make(name, None, context)


def loss(
    name: str,
    k: int,
    *,
    update: int = 0,
    ids: tuple[int, ...] = (0, 1),
    by: Any = None,
    start: Prefix | None = None,
    solver: str = "heun",
) -> Loss:
    """Return the loss of a policy, with its samples on the graph."""
    by = by or policy()
    batch = Batch(rollouts=start or prefix(k, ids, solver), key=(3, update))
    return objective(name, k, solver).loss(batch, SimpleNamespace(tuned=by, base=by), calm)


def made(name: str, k: int, **changes: Any) -> list[torch.Tensor]:
    return list(loss(name, k, **changes).samples)


def gradient(x: torch.Tensor, by: Policy) -> torch.Tensor:
    grads = torch.autograd.grad(x.square().sum(), list(by.tuned.network.parameters()), allow_unused=True)
    parameters = by.tuned.network.parameters()
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)])


def test_pathwise_is_replay() -> None:
    by = policy()
    (x,) = made("pathwise", 2, by=by)
    assert torch.equal(x, replay(DenoisingProcess(STEPS), by, prefix(2)))


@pytest.mark.parametrize(("name", "k"), [("pathwise", 2), ("draft-lv", 1), ("alignprop", 2), ("reft", 2)])
def test_the_loss_is_minus_the_mean_reward_of_the_samples(name: str, k: int) -> None:
    """In physical units, over all samples of all prefixes, and recorded per prefix."""
    found, pde = loss(name, k), tiny_info().pde()
    rewards = torch.stack([calm(pde.normalizer.to_physical(x)).reward for x in found.samples])
    torch.testing.assert_close(found.value, -rewards.mean())
    torch.testing.assert_close(found.metrics["reward"], rewards.mean(0).detach())
    assert not found.metrics["reward"].requires_grad


def test_draft_lv_differentiates_the_last_evaluation_from_several_noises() -> None:
    by, process = policy(), DenoisingProcess(STEPS)
    first, *others = made("draft-lv", 1, by=by)
    assert len(others) == REPEATS - 1 == 1
    sigma = process.sigmas[STEPS - 1]
    noise = seeding.normal(3, "draft-lv 0 1", (0, 1), SHAPE)
    torch.testing.assert_close(others[0], by.tuned(first.detach() + sigma * noise, sigma))
    direct = by.tuned(first.detach() + sigma * noise, sigma)
    torch.testing.assert_close(gradient(others[0], by), gradient(direct, by))


def test_draft_lv_draws_by_seed_update_and_sample() -> None:
    pair, alone = made("draft-lv", 1, ids=(0, 1)), made("draft-lv", 1, ids=(1,))
    torch.testing.assert_close(pair[1][1:], alone[1])
    assert not torch.equal(made("draft-lv", 1, update=1)[1], pair[1])
    with pytest.raises(ConfigError, match="truncation must be 1, got 2"):
        objective("draft-lv", 2)


def pathwise_gradients(by: Policy) -> dict[int, torch.Tensor]:
    """Return the gradient through the last k steps, for each k up to 3."""
    process, found = DenoisingProcess(STEPS), {}
    for k in (1, 2, 3):
        with torch.no_grad():
            start = advance(process, by.denoisers(process), prefix(3).state, STEPS - k)
        found[k] = gradient(replay(process, by, Prefix(x=start.x, step=start.step, sample_ids=(0, 1))), by)
    return found


def drawn_steps(updates: int) -> list[int]:
    """Return AlignProp's k of each update, found by the equal pathwise gradient.

    Both gradients come from the same evaluations in float64, so they differ by rounding only, about 1e-13 of the norm.
    """
    by, found = policy(), []
    expected = pathwise_gradients(by)
    for update in range(updates):
        (x,) = made("alignprop", 3, update=update, by=by)
        mine = gradient(x, by)
        found += [k for k, other in expected.items() if (mine - other).norm() < 1e-10 * other.norm()]
    return found


def test_alignprop_backpropagates_a_random_number_of_steps_exactly() -> None:
    """Checkpointing changes no gradient, and the draws repeat.

    In 12 draws from three values one value is missing with probability 3 (2/3)^12 = 2 %. The draws of this seed have all three.
    """
    found = drawn_steps(12)
    assert len(found) == 12
    assert set(found) == {1, 2, 3}
    assert found == drawn_steps(12)


def test_reft_rewards_one_prediction_at_a_drawn_step() -> None:
    by, process = policy(), DenoisingProcess(STEPS)
    steps = set()
    for update in range(8):
        (x,) = made("reft", 3, update=update, by=by)
        for step in range(STEPS - 3, STEPS):
            with torch.no_grad():
                state = advance(process, by.denoisers(process), prefix(3).state, step).x
            direct = by.tuned(state, process.sigmas[step])
            if torch.equal(x, direct):
                steps.add(step)
                torch.testing.assert_close(gradient(x, by), gradient(direct, by))
    assert steps == {1, 2, 3}


@pytest.mark.parametrize("solver", ["heun", "euler"])
@pytest.mark.parametrize(("name", "k", "draws"), [("pathwise", 2, 1), ("draft-lv", 1, 1), ("alignprop", 3, 3), ("reft", 3, 3)])
def test_each_draw_has_the_cost_that_the_meter_counts(name: str, k: int, draws: int, solver: str) -> None:
    """Updates run until each k was drawn. Every k has its own cost."""
    by, start = policy(torch.float32), prefix(k, solver=solver, dtype=torch.float32)
    spent: set[float] = set()
    for update in range(30 if draws > 1 else 2):
        with Meter() as meter:
            loss(name, k, update=update, by=by, start=start, solver=solver).value.backward()
        expected = objective(name, k, solver).cost(Batch(rollouts=start, key=(3, update)))
        counted = meter.cost
        assert (counted.network_forwards, counted.network_gradients) == (expected.network_forwards, expected.network_gradients)
        spent.add(expected.units)
        if draws > 1 and len(spent) == draws:
            break
    assert len(spent) == draws


class Counting:
    """Policy with one weight that counts its evaluations with and without gradient."""

    def __init__(self) -> None:
        self.theta = torch.ones((), requires_grad=True)
        self.evaluations = {True: 0, False: 0}

    def denoisers(self, process: DenoisingProcess, condition: Any = None) -> Callable[[float], Denoise]:
        return lambda step_sigma: self.denoise

    def denoise(self, x: torch.Tensor, sigma: float) -> torch.Tensor:
        self.evaluations[torch.is_grad_enabled()] += 1
        return self.theta * x / (1 + sigma)


@pytest.mark.parametrize(("name", "with_gradient"), [("alignprop", [3, 2, 1]), ("reft", [1, 1, 1])])
def test_k_is_drawn_uniformly(name: str, with_gradient: list[int]) -> None:
    """Euler makes 3 - k evaluations without gradient for K = 3, which shows k.

    The expected count of each k in 600 draws is 200, with a standard deviation of sqrt(600 2/9) = 11.5. The tolerance of 58 is
    five standard deviations.
    """
    counts = [0, 0, 0]
    start = Prefix(x=torch.zeros(1, 1, 1, 1), step=STEPS - 3, sample_ids=(0,))
    for update in range(600):
        by = Counting()
        loss(name, 3, update=update, by=by, start=start, solver="euler")
        without = by.evaluations[False]
        assert by.evaluations[True] == with_gradient[without]
        counts[without] += 1
    assert counts == pytest.approx([200] * 3, abs=58)


def path_kl_by_hand(by: Policy, base: Policy, batch: Batch, process: DenoisingProcess) -> torch.Tensor:
    """Return sum_i |m_t - m_b|^2 / (2 c^2) along the replayed chain, with m = D + a (x - D), so m_t - m_b = (1 - a) (D_t - D_b)."""
    start, kl = batch.rollouts, torch.zeros(len(batch), dtype=torch.float64)
    noise = seeding.NoiseStream(batch.key[0], f"replay {batch.stream}", start.sample_ids)
    state = State(x=start.x, step=start.step)
    while not process.terminal(state):
        sigma, after = process.sigmas[state.step], process.sigmas[state.step + 1]
        denoised = by.denoisers(process)(sigma)(state.x, sigma)
        drawn = None
        if after > 0:
            drawn = noise.draw(SHAPE)
            c = after * (1 - (after / sigma) ** 2) ** 0.5
            a = (after**2 - c**2) ** 0.5 / sigma
            change = (1 - a) * (denoised - base.denoisers(process)(sigma)(state.x, sigma))
            kl = kl + change.square().flatten(1).sum(1) / (2 * c**2)
        state = process.transition(state, denoised, drawn)
    return kl


def test_the_path_kl_is_that_of_the_stochastic_steps() -> None:
    """loss = -r + beta KL, float64."""
    by, base, process = policy(), policy(), DenoisingProcess(STEPS, "stochastic")
    with torch.no_grad():
        for parameter in by.tuned.parameters():
            parameter.mul_(1.05)
    start = prefix(3)
    batch, beta = Batch(rollouts=start, key=(3, 0)), 0.25
    kl = path_kl_by_hand(by, base, batch, process)
    context = Context(process=process, pde=tiny_info().pde(), truncation=3)
    settings = OBJECTIVES.settings("pathwise")
    both = [
        OBJECTIVES.make("pathwise", type(settings)(path_kl=b), context).loss(batch, SimpleNamespace(tuned=by, base=base), calm)
        for b in (0.0, beta)
    ]
    assert kl.min() > 0
    torch.testing.assert_close(both[1].value - both[0].value, beta * kl.mean(), rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(both[1].metrics["path_kl"], kl.detach(), rtol=1e-8, atol=1e-10)
