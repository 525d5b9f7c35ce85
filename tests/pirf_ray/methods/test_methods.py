"""The method seam: registry, settings, budgets, meters; every method trains and samples."""

import json
from pathlib import Path

import optuna
import pytest
import torch

from envs.common.checks import ConfigError
from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from pirf_ray.methods import METHODS, Follower, Method, Problem, find_method, register
from pirf_ray.methods import solver_data as solver_data_module
from pirf_ray.methods.reward_tuned import RewardTuned, updates_within
from pirf_ray.metrics.cost import Cost, Meter
from tiny_models import tiny_denoiser, tiny_info

STEPS = 5
TUNED = [name for name, method in METHODS.items() if isinstance(method, RewardTuned)]
NAMES = [
    "base",
    "base-corrected",
    "diffusion-pde",
    "cocogen",
    "pg-diffusion",
    "pidm-mean",
    "pidm-sample",
    "draft-k",
    "draft-lv",
    "alignprop",
    "reft",
    "pirf-freeze",
    "pirf-truncate",
    "pirf-ray-uncorrected",
    "pirf-ray",
]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Problem:
    monkeypatch.setattr(solver_data_module, "FIELDS", 32)
    return Problem(info=tiny_info(), base=tiny_denoiser().requires_grad_(False), num_steps=STEPS)


def test_all_methods_of_the_benchmark_are_there_in_the_tables_order() -> None:
    assert list(METHODS) == NAMES


def test_unknown_and_taken_names(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="--methods: unknown method 'wishful'; known: base, base-corrected, diffusion-pde"):
        find_method("wishful")
    other = type("Other", (Method,), {"name": "base", "sampler": lambda *_: None})
    with pytest.raises(ValueError, match="'base' is taken by pirf_ray.methods.plain.Base"):
        register(other)


OWN = """
from pirf_ray.methods import Method, register
from pirf_ray.methods.plain import Base

@register
class Mine(Base):
    name = "mine"
    title = "mine"
"""


def test_a_method_of_ones_own_is_named_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_method.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PIRF_RAY_PDES", "")
    monkeypatch.setattr("pirf_ray.methods.base.METHODS", METHODS)
    try:
        assert find_method("own_method:mine").title == "mine"
    finally:
        METHODS.pop("mine", None)


@pytest.mark.parametrize("name", NAMES)
def test_defaults_and_suggestions_have_the_same_names(tiny: Problem, name: str) -> None:
    method = METHODS[name]
    defaults = method.defaults(tiny)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(defaults)
    first = method.suggest(study.ask(), tiny)
    assert first == defaults  # inside the space: an enqueued value outside would be drawn anew
    assert method.suggest(study.ask(), tiny).keys() == defaults.keys()
    assert json.loads(json.dumps(defaults)) == defaults
    assert method.title and method.source


@pytest.mark.parametrize("name", [n for n in NAMES if not isinstance(METHODS[n], Follower)])
def test_every_method_trains_and_samples(tiny: Problem, name: str) -> None:
    method = METHODS[name]
    settings = method.defaults(tiny)
    weights = method.train(tiny, settings, budget=700, seed=0)
    assert bool(weights) == method.trains
    noise = seeding.normal(0, "methods", range(2), tiny.pde.shape).float()
    with torch.no_grad():
        x = method.sampler(tiny, settings, weights)(DenoisingProcess(3), noise)
        base = METHODS["base"].sampler(tiny, {}, {})(DenoisingProcess(3), noise)
    assert x.isfinite().all()
    assert torch.equal(x, base) == (name == "base")
    assert all(not p.requires_grad for p in tiny.base.parameters())


def test_a_follower_ends_what_it_follows(tiny: Problem) -> None:
    leader, follower = METHODS["pirf-ray-uncorrected"], METHODS["pirf-ray"]
    assert isinstance(follower, Follower) and follower.follows == leader.name
    settings = leader.defaults(tiny)
    weights = leader.train(tiny, settings, budget=700, seed=0)
    noise = seeding.normal(0, "methods", range(2), tiny.pde.shape).float()
    with torch.no_grad():
        made = leader.sampler(tiny, settings, weights)(DenoisingProcess(3), noise)
        ended = follower.sampler(tiny, settings, weights)(DenoisingProcess(3), noise)
    assert torch.equal(ended, follower.finish(tiny, made))
    assert (tiny.residual(ended) < tiny.residual(made)).all()


@pytest.mark.parametrize("name", [n for n in TUNED if n != "alignprop" and n != "reft"])
def test_a_training_spends_its_budget_and_no_more(tiny: Problem, name: str) -> None:
    """To within one update: those of random depth (AlignProp, ReFT) only in the mean."""
    method = METHODS[name]
    assert isinstance(method, RewardTuned)
    settings = method.defaults(tiny)
    spent = []
    for updates in (3, 4):
        config = method.config(tiny, settings, updates=updates)
        budget = next(b for b in range(200, 20_000, 10) if _updates(config, b) == updates)
        with Meter() as meter:
            method.train(tiny, settings, budget=budget, seed=0)
        assert meter.cost.units <= budget + 10
        spent.append(meter.cost.units)
    each = spent[1] - spent[0]
    assert budget - spent[1] <= each  # the budget is the least that pays for the updates


def _updates(config: object, budget: float) -> int:
    try:
        return updates_within(config, budget)  # type: ignore[arg-type]
    except ConfigError:
        return 0


def test_a_budget_for_no_update_is_refused(tiny: Problem) -> None:
    with pytest.raises(ConfigError, match=r"--budget 10 pays for no update: the first costs \d+ network forwards"):
        METHODS["draft-k"].train(tiny, METHODS["draft-k"].defaults(tiny), budget=10, seed=0)


def test_the_meter_counts_inside_its_block_only() -> None:
    denoiser, x = tiny_denoiser(), torch.zeros(3, 1, 8, 8)
    denoiser(x, 1.0)
    with Meter() as outer:
        y = denoiser(x, 1.0)
        with Meter() as inner, torch.no_grad():
            denoiser(x[:1], 1.0)
        y.sum().backward()
    denoiser(x, 1.0).sum().backward()
    assert (outer.forwards, outer.gradients) == (4, 3)
    assert (inner.forwards, inner.gradients) == (1, 0)
    assert outer.cost.units == 4 + 2 * 3
    assert outer.seconds >= inner.seconds > 0


def test_costs_add_and_divide() -> None:
    one = Cost(network_forwards=4, network_gradients=2, residual_gradients=1, seconds=3.0)
    assert (one + one).per(4) == Cost(network_forwards=2, network_gradients=1, residual_gradients=0.5, seconds=1.5)
