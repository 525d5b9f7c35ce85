"""Running recipes: their settings, what they cost, and the commands that take their defaults from a recipe."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from envs.common.checks import ConfigError
from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from pirf_ray.cli.runs import open_run, parse_train
from pirf_ray.diffusion.model import TUNED, Model
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import SampleBatch, SamplerSettings, for_batch
from pirf_ray.methods import METHODS, Problem, Recipe, Settings
from pirf_ray.methods.running import config_of, finisher, named, recipe_settings, sampled_as, sampler, train
from pirf_ray.metrics.cost import Meter
from pirf_ray.steering import STEERERS, SteeringContext, steer
from pirf_ray.steering.cocogen import CoCoGenSettings
from pirf_ray.steering.correction import residual_floor
from pirf_ray.steering.diffusion_pde import DiffusionPDESettings
from pirf_ray.training.settings import TrainConfig
from registries import restored

STEPS = 6


def noise(problem: Problem, ids: range = range(2)) -> torch.Tensor:
    return seeding.normal(0, "methods", ids, problem.pde.shape).float()


@torch.no_grad()
def sampled(problem: Problem, name: str, settings: Settings, steps: int = STEPS) -> torch.Tensor:
    return sampler(METHODS[name], problem, settings, {})(DenoisingProcess(steps), noise(problem))


@pytest.mark.parametrize(
    ("name", "settings", "forwards", "gradients", "residuals"),
    [
        ("base", {}, 11, 0, 0),
        ("diffusion-pde", {"guidance": 0.1}, 11, 2, 2),  # ceil(.2 * 6) = 2 guided steps
        ("cocogen", {"step": 0.25, "after": 3}, 11, 0, 5),  # one after each of 2 steps, 3 at the end
        ("pg-diffusion", {"scale": 0.0}, 11, 0, 0),
        ("pg-diffusion", {"scale": 1.0}, 11, 0, 11),
        ("pg-diffusion", {"scale": 2.0}, 22, 0, 11),
        ("base-corrected", {}, 11, 0, 20),
    ],
)
def test_costs_are_as_stated(tiny: Problem, name: str, settings: Settings, forwards: int, gradients: int, residuals: int) -> None:
    with Meter() as meter:
        sampled(tiny, name, settings)
    cost = meter.cost.per(2)
    assert (cost.network_forwards, cost.network_gradients, cost.residual_gradients) == (forwards, gradients, residuals)


@pytest.mark.parametrize("steps", [1, STEPS])
def test_steered_methods_are_their_steerers_with_the_problems_residual_and_floor(tiny: Problem, steps: int) -> None:
    """CoCoGen stops at the floor of exact data."""
    floor = residual_floor(tiny.pde, tiny.pde.default_operator)
    context = SteeringContext(policy=Policy(tiny.base), residual=tiny.residual, floor=floor)
    parts = {"diffusion-pde": DiffusionPDESettings(guidance=0.3), "cocogen": CoCoGenSettings(step=0.3, after=2)}
    for name, settings in parts.items():
        own = steer(STEERERS.make(name, settings, context))
        with torch.no_grad():
            expected = own(DenoisingProcess(steps), noise(tiny))
        assert torch.equal(sampled(tiny, name, settings.to_json(), steps), expected)


def test_a_tuned_policy_may_be_steered(tiny: Problem) -> None:
    """A recipe that trains and steers: with other weights the same steerer makes other samples."""
    recipe = Recipe(name="both", title="both", paper="", settings=METHODS["reft"].settings, steerer="cocogen")
    tuned = {name: 1.1 * tensor for name, tensor in tiny.base.tensors().items()}
    with torch.no_grad():
        made = [sampler(recipe, tiny, {}, weights)(DenoisingProcess(STEPS), noise(tiny)) for weights in ({}, tuned)]
    assert not torch.allclose(made[0], made[1], atol=1e-3)


def test_an_untrained_adapter_and_scale_zero_are_the_base(tiny: Problem) -> None:
    """To the rounding of another memory layout, over 11 evaluations."""
    base = sampled(tiny, "base", {})
    for scale in (0.0, 1.0, 3.0):
        torch.testing.assert_close(sampled(tiny, "pg-diffusion", {"scale": scale}), base, rtol=1e-4, atol=1e-5)


def test_a_trained_adapter_is_the_base_at_scale_zero_only(tiny: Problem) -> None:
    recipe, before = METHODS["pg-diffusion"], {name: t.clone() for name, t in tiny.base.tensors().items()}
    weights = train(recipe, tiny, {"learning_rate": 1e-2, "data_fields": 32}, budget=3 * 16 * 5, seed=0)
    assert sorted(weights) == ["adapter.first.bias", "adapter.first.weight", "adapter.last.bias", "adapter.last.weight"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.base.tensors().items())
    with torch.no_grad():
        made = [sampler(recipe, tiny, {"scale": s}, weights)(DenoisingProcess(STEPS), noise(tiny)) for s in (0.0, 1.0)]
    base = sampled(tiny, "base", {})  # after the training, which sets the memory layout of the base model
    assert torch.equal(made[0], base) and not torch.allclose(made[1], base, atol=1e-4)


@pytest.mark.parametrize("name", ["pidm-mean", "pidm-sample", "pg-diffusion"])
def test_training_on_solver_data_is_a_function_of_its_seed(tiny: Problem, name: str) -> None:
    settings = {"data_fields": 32}
    first, again, other = (train(METHODS[name], tiny, settings, budget=300, seed=seed) for seed in (1, 1, 2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    assert any(not torch.equal(first[n], other[n]) for n in first)


def test_settings_come_from_the_preset_then_the_recipe_then_the_trial(tiny: Problem) -> None:
    """Burgers' small preset has the anchor 80, the recipe 300; N and the resolution are the problem's."""
    recipe = METHODS["pirf-ray-uncorrected"]
    own, tried = (config_of(recipe, tiny, settings, updates=7, seed=3) for settings in ({}, {"anchor": 20.0}))
    assert own.regularizers_settings.anchor == 300.0 and tried.regularizers_settings.anchor == 20.0
    assert (own.sampler.num_steps, own.resolution, own.optimizer.updates, own.seed) == (4, 8, 7, 3)
    assert own.actor == config_of(METHODS["base"], tiny, {}).actor
    short = replace(tiny, num_steps=2)
    assert config_of(recipe, short, {}).policy.truncation == 2  # the preset's 4 steps are more than there are
    with pytest.raises(ConfigError, match=r"--truncation must be in \[1, 2\] \(the sampler's steps\), got 4"):
        config_of(METHODS["reft"], short, {})


def test_unknown_settings_are_named(tiny: Problem) -> None:
    with pytest.raises(ValueError, match="unknown settings: lerning_rate"):
        config_of(METHODS["reft"], tiny, {"lerning_rate": 1.0})
    wrong = Recipe(name="w", title="w", paper="w", steerer="cocogen", steerer_settings={"stride": 1})
    with pytest.raises(ValueError, match="unknown settings of steerer 'cocogen': stride; known: step, after"):
        sampler(wrong, tiny, {}, {})


def test_a_finished_sampler_knows_its_batch(tiny: Problem) -> None:
    """The finisher gets what the other method's sampler makes of the named samples, with a stochastic solver too."""
    process, batch = DenoisingProcess(STEPS, "stochastic"), SampleBatch(seed=0, stream="methods", ids=range(2))
    recipe = METHODS["base-corrected"]
    with torch.no_grad():
        made = for_batch(sampler(METHODS["base"], tiny, {}, {}), batch)(process, noise(tiny))
        ended = for_batch(sampler(recipe, tiny, {}, {}), batch)(process, noise(tiny))
    assert torch.equal(ended, finisher(recipe, tiny)(made))


# --- defaults of the commands ---


def test_train_takes_the_recipes_settings_and_flags_override_them() -> None:
    config = parse_train(["--method", "pirf-truncate", "--l2", "2.5"]).arguments.config
    assert (config.parameters_settings.levels, config.parameters_settings.layer_mode) == (1, "truncate")
    assert (config.regularizers, config.regularizers_settings.l2) == (("l2",), 2.5)
    assert (config.reward_settings.reward_form, config.policy.scope) == ("plain", "all")
    adapter = parse_train(["--method", "pg-diffusion", "--condition-dropped", "0.2"]).arguments.config
    assert (adapter.objective, adapter.parameters, adapter.maker_name) == ("denoising", "residual-adapter", "data")
    assert adapter.objective_settings.condition_dropped == 0.2
    other = parse_train(["--method", "pidm-mean", "--objective", "pathwise", "--regularizers", "l2", "anchor", "--anchor", "1"])
    assert (other.arguments.config.objective, other.arguments.config.regularizers_settings.anchor) == ("pathwise", 1.0)


def test_corrections_of_a_run_are_the_recipes_finisher() -> None:
    assert recipe_settings("pirf-ray")["corrections"] == 20 and recipe_settings("pirf-ray-uncorrected")["corrections"] == 0
    assert {**recipe_settings("pirf-ray"), "corrections": 0} == recipe_settings("pirf-ray-uncorrected")


def test_methods_that_are_unknown_or_train_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="--method: unknown method 'wishful'; known: adjoint-matching, alignprop"):
        named("wishful")
    with pytest.raises(ConfigError, match="--method cocogen: it trains nothing; methods that train: adjoint-matching, alignprop"):
        recipe_settings("cocogen")


def test_a_model_keeps_its_solver_unless_the_recipe_names_one(tiny: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    restored(METHODS, monkeypatch)
    METHODS.add("2m", Recipe(name="2m", title="2M", paper="", settings={"solver": "2m", "num_steps": 9}), owner=__name__)
    model = Model(info=tiny.info, policy=Policy(tiny.base), sampler=SamplerSettings(num_steps=STEPS, solver="euler"))
    assert sampled_as("cocogen", model).sampler == model.sampler
    assert sampled_as("2m", model).sampler == SamplerSettings(num_steps=STEPS, solver="2m")


def test_a_method_cannot_be_given_to_a_run_that_has_all_its_settings(tmp_path: Path) -> None:
    settings = tmp_path / "config.json"
    settings.write_text(json.dumps(TrainConfig().to_json()))
    with pytest.raises(ConfigError, match="--settings holds every setting of a run: --method cannot be given with it"):
        open_run(parse_train(["--settings", str(settings), "--method", "reft"]))
    with pytest.raises(ConfigError, match="--resume continues a run as it is: --out, --base, --settings and --method cannot"):
        open_run(parse_train(["--resume", str(tmp_path), "--method", "reft"]))


@pytest.mark.parametrize("name", ["diffusion-pde", "base-corrected", "base"])
def test_a_model_samples_as_a_recipe_does(tiny: Problem, name: str) -> None:
    model = Model(info=tiny.info, policy=Policy(tiny.base), sampler=SamplerSettings(num_steps=STEPS))
    made = sampled_as(name, model).sample(range(2), seed=0, stream="methods")[TUNED]
    expected = sampled(tiny, name, METHODS[name].defaults)
    assert torch.equal(made, tiny.pde.normalizer.to_physical(expected))
