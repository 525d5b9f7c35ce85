"""The method seam: registry, settings, budgets, meters; every method trains and samples."""

import json
from pathlib import Path

import optuna
import pytest
import torch

from envs.common.checks import ConfigError
from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from pirf_ray.comparison.tuning import suggest
from pirf_ray.methods import METHODS, FinishedMethod, Method, Problem, find_method, register
from pirf_ray.methods import solver_data as solver_data_module
from pirf_ray.methods.reward_tuned import RewardTuned, updates_within
from pirf_ray.metrics.cost import Meter
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


def test_unknown_and_taken_names() -> None:
    with pytest.raises(ValueError, match="--methods: unknown method 'wishful'; known: alignprop, base, base-corrected, cocogen"):
        find_method("wishful")
    other = type("Other", (Method,), {"name": "base", "sampler": lambda *_: None})
    with pytest.raises(ValueError, match="'base' .*is taken by pirf_ray.methods.plain.Base"):
        register(other)
    nameless = type("Nameless", (Method,), {"name": "../base", "sampler": lambda *_: None})
    with pytest.raises(ValueError, match="method name '../base': letters, digits"):
        register(nameless)
    assert list(METHODS) == NAMES


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
    monkeypatch.setattr(METHODS, "_parts", dict(METHODS._parts))
    monkeypatch.setattr(METHODS, "_owners", dict(METHODS._owners))
    assert find_method("own_method:mine").title == "mine"
    assert list(METHODS) == [*NAMES, "mine"]


@pytest.mark.parametrize("name", NAMES)
def test_defaults_and_suggestions_have_the_same_names(tiny: Problem, name: str) -> None:
    """Defaults lie inside the space: an enqueued value outside would be drawn anew."""
    method = METHODS[name]
    defaults, space = method.defaults(tiny), method.search(tiny)
    assert space.keys() == defaults.keys()
    assert all(spec.holds(defaults[setting]) for setting, spec in space.items())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(defaults)
    first, second = ({n: suggest(trial, n, spec) for n, spec in space.items()} for trial in (study.ask(), study.ask()))
    assert first == defaults
    assert {setting: type(value) for setting, value in second.items()} == {n: type(value) for n, value in defaults.items()}
    assert json.loads(json.dumps(defaults)) == defaults
    assert method.title and method.source


@pytest.mark.parametrize("name", [n for n in NAMES if not isinstance(METHODS[n], FinishedMethod)])
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


@pytest.mark.parametrize("name", [n for n in NAMES if isinstance(METHODS[n], FinishedMethod)])
def test_a_finished_method_finishes_the_samples_of_another(tiny: Problem, name: str) -> None:
    finished = METHODS[name]
    assert isinstance(finished, FinishedMethod)
    method = METHODS[finished.samples_of]
    settings = method.defaults(tiny)
    weights = method.train(tiny, settings, budget=700, seed=0)
    noise = seeding.normal(0, "methods", range(2), tiny.pde.shape).float()
    with torch.no_grad():
        made = method.sampler(tiny, settings, weights)(DenoisingProcess(3), noise)
        ended = finished.sampler(tiny, settings, weights)(DenoisingProcess(3), noise)
    assert torch.equal(ended, finished.finisher(tiny)(made))
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
