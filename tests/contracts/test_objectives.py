"""Objectives: the evaluations with gradient, the random draws, the cost."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from envs.denoising import DenoisingProcess, State
from envs.numerics import seeding
from pirf_ray.diffusion.policy import Policy, switch_sigma
from pirf_ray.diffusion.sampling import Denoise, advance
from pirf_ray.learning.objectives import OBJECTIVES, find_objective, register
from pirf_ray.learning.objectives.draft_lv import REPEATS
from pirf_ray.learning.parameters import layers
from pirf_ray.learning.rollouts.prefixes import Prefix, replay
from pirf_ray.metrics.cost import Meter
from tiny_models import RESOLUTION, tiny_config, tiny_denoiser, tiny_learner, tiny_source

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
    return Prefix(x=x, step=STEPS - k, sample_ids=ids, policy_version=0, base_output=None)


def made(name: str, k: int, *, update: int = 0, ids: tuple[int, ...] = (0, 1), by: Policy | None = None) -> list[torch.Tensor]:
    samples = OBJECTIVES[name].samples(DenoisingProcess(STEPS), by or policy(), prefix(k, ids), seed=3, update=update)
    return list(samples)


def gradient(x: torch.Tensor, by: Policy) -> torch.Tensor:
    grads = torch.autograd.grad(x.square().sum(), list(by.tuned.network.parameters()), allow_unused=True)
    parameters = by.tuned.network.parameters()
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, grads, strict=True)])


def test_pathwise_is_replay() -> None:
    by = policy()
    (x,) = made("pathwise", 2, by=by)
    assert torch.equal(x, replay(DenoisingProcess(STEPS), by, prefix(2).x, STEPS - 2))


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
    with pytest.raises(ValueError, match="truncation must be 1, got 2"):
        made("draft-lv", 2)


def pathwise_gradients(by: Policy) -> dict[int, torch.Tensor]:
    """Return the gradient through the last k steps, for each k up to 3."""
    process, found = DenoisingProcess(STEPS), {}
    for k in (1, 2, 3):
        with torch.no_grad():
            start = advance(process, by.denoisers(process), State(x=prefix(3).x, step=STEPS - 3), STEPS - k)
        found[k] = gradient(replay(process, by, start.x, start.step), by)
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
                state = advance(process, by.denoisers(process), State(x=prefix(3).x, step=STEPS - 3), step).x
            direct = by.tuned(state, process.sigmas[step])
            if torch.equal(x, direct):
                steps.add(step)
                torch.testing.assert_close(gradient(x, by), gradient(direct, by))
    assert steps == {1, 2, 3}


@pytest.mark.parametrize("solver", ["heun", "euler"])
@pytest.mark.parametrize(("name", "k", "draws"), [("pathwise", 2, 1), ("draft-lv", 1, 1), ("alignprop", 3, 3), ("reft", 3, 3)])
def test_cost_is_what_the_meter_counts(name: str, k: int, draws: int, solver: str) -> None:
    """Each k has its own cost, and ``cost`` is the mean over k. Updates run until each k was drawn."""
    process, by = DenoisingProcess(STEPS, solver), policy(torch.float32)
    start = prefix(k, solver=solver, dtype=torch.float32)
    spent: set[float] = set()
    for update in range(30 if draws > 1 else 2):
        with Meter() as meter:
            for x in OBJECTIVES[name].samples(process, by, start, seed=0, update=update):
                x.sum().backward()
        spent.add(meter.cost.units / 2)
        if draws > 1 and len(spent) == draws:
            break
    assert len(spent) == draws
    assert sum(spent) / draws == pytest.approx(OBJECTIVES[name].cost(process, k), rel=1e-12)


class Counting:
    """Policy with one weight that counts its evaluations with and without gradient."""

    def __init__(self) -> None:
        self.theta = torch.ones((), requires_grad=True)
        self.evaluations = {True: 0, False: 0}

    def denoisers(self, process: DenoisingProcess) -> Callable[[float], Denoise]:
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
    start = Prefix(x=torch.zeros(1, 1, 1, 1), step=STEPS - 3, sample_ids=(0,), policy_version=0, base_output=None)
    for update in range(600):
        by = Counting()
        OBJECTIVES[name].samples(DenoisingProcess(STEPS, "euler"), by, start, seed=0, update=update)
        without = by.evaluations[False]
        assert by.evaluations[True] == with_gradient[without]
        counts[without] += 1
    assert counts == pytest.approx([200] * 3, abs=58)


def test_unknown_and_taken_names() -> None:
    with pytest.raises(ValueError, match=r"--objective: unknown objective 'x'; known: alignprop, draft-lv, pathwise, reft"):
        find_objective("x")
    with pytest.raises(ValueError, match="'pathwise' of .*Mine is taken by pirf_ray.learning.objectives.pathwise.Pathwise"):
        register("pathwise")(type("Mine", (), {}))


OWN = """
from pirf_ray.learning.objectives import register
from pirf_ray.learning.objectives.pathwise import Pathwise

@register("doubled")
class Doubled(Pathwise):
    def samples(self, process, policy, prefix, *, seed, update):
        return 2 * super().samples(process, policy, prefix, seed=seed, update=update)
"""


def test_a_users_own_objective_is_named_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two equal samples of each prefix give the same update as one sample."""
    (tmp_path / "own_objective.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PIRF_RAY_PDES", "")
    weights = {}
    for name in ("own_objective:doubled", "pathwise"):
        config = tiny_config(objective=name)
        trained = tiny_learner(config)
        trained.update(tiny_source(config).batch(0))
        weights[name] = torch.cat([w.flatten() for w in trained.weights().values()])
    torch.testing.assert_close(weights["own_objective:doubled"], weights["pathwise"], rtol=1e-5, atol=1e-7)
