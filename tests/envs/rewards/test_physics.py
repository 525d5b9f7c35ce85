"""Rewards: their forms, their breakdown, and that nothing is gained below the floor."""

import pytest
import torch

from envs.numerics import seeding
from envs.pdes import make_pde
from envs.rewards import PhysicsReward, Term, physics_reward, shaped
from tiny_models import RESOLUTION

PDE = make_pde("Burgers-v0", RESOLUTION)


def term(**changes: object) -> Term:
    defaults = {"name": "t", "weight": 1.0, "violation": lambda f: f.flatten(1).mean(1), "floor": 0.1, "reference": 0.2}
    return Term(**{**defaults, **changes})


def test_forms_by_hand() -> None:
    """v = .3, r_ref = .2: plain -.3; log -ln .5; saturating -.3/.5."""
    v = torch.tensor([0.3], dtype=torch.float64)
    values = {form: shaped(v, form, floor=0.1, reference=0.2).item() for form in ("plain", "log", "saturating")}
    assert values == pytest.approx({"plain": -0.3, "log": 0.6931471805599453, "saturating": -0.6})


@pytest.mark.parametrize("form", ["plain", "log", "saturating"])
def test_nothing_is_gained_below_the_floor(form: str) -> None:
    v = torch.tensor([0.0, 0.05, 0.0999], requires_grad=True)
    reward = shaped(v, form, floor=0.1, reference=0.2)
    assert torch.equal(reward, shaped(torch.full((3,), 0.1), form, floor=0.1, reference=0.2))
    (gradient,) = torch.autograd.grad(reward.sum(), v)
    assert torch.equal(gradient, torch.zeros(3))


@pytest.mark.parametrize("form", ["plain", "log", "saturating"])
def test_less_violation_is_more_reward_above_the_floor(form: str) -> None:
    reward = shaped(torch.tensor([0.2, 0.3, 5.0]), form, floor=0.1, reference=0.2)
    assert (reward.diff() < 0).all()


def test_log_weighs_every_sample_alike_far_above_the_reference() -> None:
    """d log(v + r)/d log v -> 1: a sample 100 times worse pulls no harder."""
    v = torch.tensor([10.0, 1000.0], requires_grad=True)
    (gradient,) = torch.autograd.grad(shaped(v, "log", floor=0.0, reference=0.01).sum(), v)
    torch.testing.assert_close(gradient * v, torch.tensor([-1.0, -1.0]), rtol=2e-3, atol=0)


def test_weighted_sum_with_breakdown() -> None:
    reward = PhysicsReward([term(), term(name="u", weight=3.0, violation=lambda f: 2 * f.flatten(1).mean(1))])
    output = reward(torch.full((2, 1, 4, 4), 0.5))
    torch.testing.assert_close(output.reward, torch.full((2,), -0.5 - 3 * 1.0))
    assert {k: v.tolist() for k, v in output.violations.items()} == {"t": [0.5, 0.5], "u": [1.0, 1.0]}


def test_reward_is_per_sample() -> None:
    fields = PDE.solve(0, "test", range(3))
    fields = fields + 0.05 * seeding.normal(0, "n", range(3), PDE.shape)
    reward = physics_reward(PDE, form="log", condition_weight=0.1)
    together = reward(fields).reward
    alone = torch.cat([reward(fields[i : i + 1]).reward for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert together.unique().numel() == 3


def test_gradcheck_of_the_whole_reward() -> None:
    fields = PDE.solve(0, "test", range(1)) + 0.05 * seeding.normal(0, "n", range(1), PDE.shape)
    reward = physics_reward(PDE, form="log", condition_weight=0.1)
    assert torch.autograd.gradcheck(lambda f: reward(f).reward, fields.requires_grad_())


def test_solver_data_reach_the_best_reward_there_is() -> None:
    """Mean over exact data of the plain reward is within a factor of its floor; noise, silence and flicker are worse."""
    pde = make_pde("Burgers-v0", 32)
    reward = physics_reward(pde, form="log", condition_weight=0.1)
    fields = pde.solve(0, "test", range(32))
    flicker = 0.05 * (-1.0) ** torch.arange(32)[:, None]
    best = reward(fields).reward.mean()
    assert best > reward(fields + 1e-3 * seeding.normal(0, "n", range(32), pde.shape)).reward.mean()
    assert best > reward(fields + flicker).reward.mean()
    assert best > reward(0 * fields).reward.mean()  # an exact solution, refused by the initial condition's law
    assert best > reward(0.5 * fields).reward.mean()


def test_the_zero_field_would_hack_a_reward_without_the_initial_condition() -> None:
    """Why the condition term and the guard exist: no residual can refuse the trivial solution."""
    bare = physics_reward(PDE, form="plain")
    zero = torch.zeros(1, *PDE.shape, dtype=torch.float64)
    assert bare(zero).reward.item() == -bare.terms[0].floor


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PhysicsReward([]), "at least one term"),
        (lambda: PhysicsReward([term()], "cubic"), r"unknown reward form 'cubic'; known: \['log', 'plain', 'saturating'\]"),
        (lambda: term(weight=-1.0), "weight of reward term 't' must not be negative, got -1.0"),
        (lambda: term(floor=0.3), "needs 0 <= floor <= reference, got 0.3 and 0.2"),
        (lambda: physics_reward(PDE, operator="x"), "unknown operator 'x' of Burgers-v0"),
    ],
)
def test_bad_rewards_are_named(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_conditions_weigh_the_pdes_own_factors_unless_told_otherwise() -> None:
    """Poisson: wall 3, weak 1.5 times the condition weight; a weight by name is taken whole."""
    pde = make_pde("Poisson-v0", 16)

    def weights(**given: float) -> dict[str, float]:
        reward = physics_reward(pde, form="log", condition_weight=0.1, weights=given)
        return {term.name: term.weight for term in reward.terms}

    assert weights() == pytest.approx({"consistent": 1.0, "wall": 0.3, "weak": 0.15})
    assert weights(wall=0.7, weak=0.0, compact=0.5) == pytest.approx({"consistent": 1.0, "wall": 0.7, "compact": 0.5})
