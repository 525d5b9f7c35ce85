"""The PDE seam: what a class must define, what it may leave out, and what is said about a part that is not there."""

import pickle

import gymnasium
import numpy as np
import pytest
import torch

from bare_pdes import Heat
from envs.common.checks import ConfigError
from envs.pdes import PDE, REGISTRY, make_pde, register
from envs.pdes.base import OPTIONAL, NotProvided, require
from envs.rewards import physics_reward
from registries import restored

FIELDS = torch.zeros(2, 1, 8, 8)
CALLS = {
    "solve": lambda pde: pde.solve(0, "test", range(2)),
    "resolve": lambda pde: pde.resolve(FIELDS),
    "resolve_error": lambda pde: pde.resolve_error(FIELDS),
    "trivial_resolve_error": lambda pde: pde.trivial_resolve_error(FIELDS),
    "marginal": lambda pde: pde.marginal(FIELDS),
}


class Unlawful(Heat):
    """Heat without operators."""

    default_operator = ""
    operators = PDE.operators


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Registries that forget after the test what it registers."""
    restored(REGISTRY, monkeypatch)
    monkeypatch.setattr(gymnasium, "registry", dict(gymnasium.registry))
    monkeypatch.setattr("gymnasium.envs.registration.registry", gymnasium.registry)


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_pde_without_a_part_names_it(name: str) -> None:
    pde = Unlawful()
    assert not pde.provides(name)
    with pytest.raises(NotProvided, match=rf"^Heat-v0 has no .+ \({name}\): the guard needs one$"):
        require(pde, name, "the guard")
    if name in CALLS:
        with pytest.raises(NotProvided, match=rf"^Heat-v0 has no .+ \({name}\)$"):
            CALLS[name](pde)


def test_the_message_says_what_to_do_instead() -> None:
    with pytest.raises(ConfigError, match=r"^Heat-v0 has no solver \(solve\): the guard needs one; give --guard off$"):
        require(Heat(), "solve", "the guard", "give --guard off")


@pytest.mark.parametrize("name", ["Burgers-v0", "Darcy-v0", "Helmholtz-v0", "Kolmogorov-v0", "Poisson-v0"])
def test_the_five_provide_all_that_evaluations_need(name: str) -> None:
    pde = make_pde(name, 8)
    for part in (*CALLS, "operators"):
        assert pde.provides(part)
        require(pde, part, "an evaluation")
    assert pde.available("test") is None


def test_a_part_of_a_later_class_is_found() -> None:
    """``solution`` and ``adjoint`` have no default in the base class: a class that defines one provides it."""

    class Solved(Heat):
        def solution(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs

    assert Solved().provides("solution") and not Solved().provides("adjoint")


def test_an_unknown_part_is_named() -> None:
    with pytest.raises(ValueError, match=r"unknown part of a PDE 'solver'; known: .*solve"):
        Heat().provides("solver")


def test_a_residual_without_operators_is_refused() -> None:
    with pytest.raises(NotProvided, match=r"^Heat-v0 has no residual operator \(operators\): a residual needs one$"):
        Unlawful().residual(FIELDS, "laplace")


def test_the_error_travels_between_processes() -> None:
    error = pickle.loads(pickle.dumps(NotProvided("Heat-v0 has no solver (solve)")))
    assert isinstance(error, NotProvided) and str(error) == "Heat-v0 has no solver (solve)"


@pytest.mark.usefixtures("registry")
def test_a_pde_without_a_solver_is_registered_and_has_an_environment() -> None:
    """Its plain reward is the residual: the floor is 0."""
    register(Heat)
    env = gymnasium.make("Heat-v0", num_steps=1)
    observation, _ = env.reset(seed=0)
    action = np.random.default_rng(0).normal(size=observation["x"].shape).astype("float32")
    _, reward, terminated, _, info = env.step(action)
    assert terminated
    residual = make_pde("Heat-v0").residual(torch.as_tensor(info["fields"])[None], "laplace")
    assert reward == pytest.approx(-residual.item(), rel=1e-5)  # float32, sums over 36 points


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"solve": lambda self, seed, stream, ids: FIELDS}, r"solver \(it defines solve\)"),
        ({"default_operator": ""}, r"default_operator \(it defines operators\)"),
        ({"channels": ()}, "channels"),
        ({"grid": PDE.grid}, "grid"),
    ],
)
def test_a_class_that_leaves_something_out_is_not_registered(changes: dict[str, object], missing: str) -> None:
    with pytest.raises(ValueError, match=f"Half cannot be registered: it does not define {missing}$"):
        register(type("Half", (Heat,), {"env_id": "Half-v0", **changes}))
    assert "Half-v0" not in REGISTRY


def test_a_physics_reward_needs_an_operator_or_a_condition() -> None:
    with pytest.raises(NotProvided, match=r"Heat-v0 has no residual operator \(operators\): the physics reward needs one; give"):
        physics_reward(Unlawful())
    cold = physics_reward(Unlawful(), condition_weight=0.5)
    assert [(term.name, term.weight, term.floor) for term in cold.terms] == [("cold", 0.5, 0.0)]
    fields = torch.full((2, 1, 8, 8), 2.0)
    assert cold(fields).reward.tolist() == [-2.0, -2.0]  # 0.5 times the mean square 4


def test_equal_pdes_have_equal_identities() -> None:
    assert Heat() == Heat(8) != Heat(16)
    assert hash(Heat()) == hash(Heat(8))
    assert Heat() != Unlawful()
