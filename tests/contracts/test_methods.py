"""The method seam, over every recipe: settings, search, budgets, samples, files."""

import json
from itertools import islice
from pathlib import Path

import optuna
import pytest
import torch

from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from pirf_ray.comparison.tuning import suggest
from pirf_ray.diffusion.sampling import SampleBatch, for_batch
from pirf_ray.methods import METHODS, Problem, Settings, find_method
from pirf_ray.methods.planning import update_costs
from pirf_ray.methods.running import config_of, finisher, sampler, train
from pirf_ray.metrics.cost import Meter
from pirf_ray.training.settings import TrainConfig
from places import ROOT
from registries import restored
from tiny_models import tiny_denoiser, tiny_info

STEPS = 5
PUBLISHED = [
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
"""Rows of the published benchmark, in their order."""
NAMES = list(METHODS)
OWN = [name for name in NAMES if not METHODS[name].samples_of]
STOCHASTIC = {"svdd"}
"""Steerers that need random steps."""
TWO = SampleBatch(seed=0, stream="methods", ids=range(2))
FINISHED = [name for name in NAMES if METHODS[name].samples_of]
TRAINED = [name for name in NAMES if METHODS[name].trains]
SEAM = {"__init__.py", "base.py", "running.py", "planning.py", "shared.py"}
"""Files of the methods' room that are no recipes."""


@pytest.fixture
def tiny() -> Problem:
    return Problem(info=tiny_info(), base=tiny_denoiser().requires_grad_(False), num_steps=STEPS)


def defaults(name: str) -> Settings:
    """Return the first trial's settings, with few fields where a recipe trains on data."""
    recipe = METHODS[name]
    few = {"data_fields": 32} if recipe.trains and _config(name).maker_name == "data" else {}
    return {**recipe.defaults, **few}


def _config(name: str) -> TrainConfig:
    return config_of(METHODS[name], Problem(info=tiny_info(), base=tiny_denoiser(), num_steps=STEPS), {})


def noise(problem: Problem) -> torch.Tensor:
    return seeding.normal(0, "methods", range(2), problem.pde.shape).float()


def test_the_benchmarks_methods_are_there_in_the_tables_order() -> None:
    assert [name for name in METHODS if name in PUBLISHED] == PUBLISHED


def test_unknown_names_are_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="--methods: unknown method 'wishful'; known: .*base, base-corrected, .*cocogen"):
        find_method("wishful")


OWN_MODULE = """
from pirf_ray.methods import Recipe, register

register(Recipe(name="mine", title="my method", paper="mine", steerer="cocogen", steerer_settings={"after": 1}))
"""


def test_a_method_of_ones_own_is_named_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_method.py").write_text(OWN_MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PIRF_RAY_PDES", "")
    restored(METHODS, monkeypatch)
    assert find_method("own_method:mine").title == "my method"
    assert list(METHODS) == [*NAMES, "mine"]


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_of_a_recipe_is_known_and_told(tiny: Problem, name: str) -> None:
    """A training's settings are flags of ``train``; config.json brings them back."""
    recipe = METHODS[name]
    assert recipe.title and recipe.paper and recipe.name == name
    config = config_of(recipe, tiny, {})
    values = {key: value for part in config.to_json().values() if isinstance(part, dict) for key, value in part.items()}
    told = {**values, **{key: value for key, value in config.to_json().items() if not isinstance(value, dict)}}
    assert {key: told[key] for key in recipe.settings} == dict(recipe.settings)
    assert TrainConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
    assert not recipe.samples_of or recipe.samples_of in METHODS


@pytest.mark.parametrize("name", NAMES)
def test_the_first_trial_is_the_recipes_own(name: str) -> None:
    """An enqueued value outside the space would be drawn anew. Trials are lines of JSON."""
    recipe = METHODS[name]
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.enqueue_trial(recipe.defaults)
    first, second = ({n: suggest(trial, n, spec) for n, spec in recipe.search.items()} for trial in (study.ask(), study.ask()))
    assert first == recipe.defaults
    assert {setting: type(value) for setting, value in second.items()} == {n: type(value) for n, value in first.items()}
    assert json.loads(json.dumps(recipe.defaults)) == recipe.defaults


@pytest.mark.parametrize("name", OWN)
def test_every_method_trains_within_its_budget_and_samples(tiny: Problem, name: str) -> None:
    """The budget pays for two updates, to the last forward; only a method that trains has weights."""
    recipe, settings, budget = METHODS[name], defaults(name), 0.0
    if recipe.trains:
        budget = sum(islice(update_costs(config_of(recipe, tiny, settings), tiny.info), 2))
    with Meter() as meter:
        weights = train(recipe, tiny, settings, budget=budget, seed=0)
    assert meter.cost.units == budget
    assert bool(weights) == recipe.trains
    with torch.no_grad():
        process = DenoisingProcess(3, "stochastic" if recipe.steerer in STOCHASTIC else "heun")
        x = for_batch(sampler(recipe, tiny, settings, weights), TWO)(process, noise(tiny))
        base = for_batch(sampler(METHODS["base"], tiny, {}, {}), TWO)(process, noise(tiny))
    assert x.isfinite().all() and x.shape == base.shape
    assert torch.equal(x, base) == (name == "base")
    assert all(not p.requires_grad for p in tiny.base.parameters())


@pytest.mark.parametrize("name", FINISHED)
def test_a_finished_method_finishes_the_samples_of_another(tiny: Problem, name: str) -> None:
    finished = METHODS[name]
    other = METHODS[finished.samples_of]
    settings = defaults(finished.samples_of)
    with torch.no_grad():
        made = sampler(other, tiny, settings, {})(DenoisingProcess(3), noise(tiny))
        ended = sampler(finished, tiny, settings, {})(DenoisingProcess(3), noise(tiny))
    assert torch.equal(ended, finisher(finished, tiny)(made))
    assert (tiny.residual(ended) < tiny.residual(made)).all()


@pytest.mark.parametrize("name", TRAINED)
def test_a_training_is_a_function_of_its_settings_and_seed(tiny: Problem, name: str) -> None:
    recipe, settings = METHODS[name], defaults(name)
    budget = next(update_costs(config_of(recipe, tiny, settings, seed=1), tiny.info))
    first, again = (train(recipe, tiny, settings, budget=budget, seed=1) for _ in range(2))
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_recipe_is_at_most_40_lines() -> None:
    files = [file for file in (ROOT / "pirf_ray/methods").glob("*.py") if file.name not in SEAM]
    assert {file.name: n for file in files if (n := len(file.read_text().splitlines())) > 40} == {}
    assert {f"pirf_ray.methods.{file.stem}" for file in files} == {METHODS._owners[name][0] for name in NAMES}
