"""Specs of single parameters, the search space that they make, and the goals of a sweep."""

import math
from dataclasses import replace

import optuna
import pytest

from envs.common.checks import ConfigError
from envs.common.search import Choice, Range, parse_spec
from pirf_ray.comparison.tuning import suggest
from pirf_ray.learning.learner import OptimizerSettings
from pirf_ray.training.presets import PRESETS
from sweep_metrics import LIMITS, METRICS, evaluation_result, set_metrics
from tiny_models import EXACT, tiny_config
from tune.goals import BROKEN, TrialMetrics, kept
from tune.search_space import SearchSpace, flat, setting_kinds

LEVELS = 2


@pytest.mark.parametrize(
    ("text", "kind", "spec"),
    [
        ("4", int, Choice((4,))),
        ("1, 2,4", int, Choice((1, 2, 4))),
        ("1e-4:1e1", float, Range(1e-4, 10.0)),
        ("0.5:0.99:linear", float, Range(0.5, 0.99, log=False)),
        ("0:8:linear", int, Range(0, 8, log=False, whole=True)),
        ("freeze,truncate", str, Choice(("freeze", "truncate"))),
    ],
)
def test_specs_are_read_and_printed_back(text: str, kind: type, spec: Choice | Range) -> None:
    assert parse_spec("x", text, kind) == spec
    assert parse_spec("x", str(spec), kind) == spec


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("", int, "--learning-rate needs values like 1,2,4"),
        ("1,,2", int, "--learning-rate needs values"),
        ("1,1", int, "names a value twice"),
        ("a", float, "--learning-rate needs numbers, got 'a'"),
        ("1.5", int, "needs whole numbers, got '1.5'"),
        ("nan", float, "needs numbers, got 'nan'"),
        ("2:1", float, "low end is below its high end"),
        ("0:1", float, r"must begin above 0; for a linear one write 0:1:linear"),
        ("1:2:cubic", float, "low:high:linear"),
    ],
)
def test_bad_specs_name_the_flag(text: str, kind: type, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_spec("learning_rate", text, kind)


def test_suggestions_lie_in_their_specs() -> None:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    specs = {"a": Choice((1, 2)), "b": Range(1e-4, 10.0), "c": Range(1, 9, whole=True), "d": Choice(("x",))}
    for _ in range(20):
        trial = study.ask()
        values = {name: suggest(trial, name, spec) for name, spec in specs.items()}
        assert all(specs[name].holds(value) for name, value in values.items())
        assert isinstance(values["c"], int) and "d" not in trial.params
    logs = [
        math.log10(study.ask({"b": optuna.distributions.FloatDistribution(1e-4, 10, log=True)}).params["b"]) for _ in range(200)
    ]
    assert sum(x < -1.5 for x in logs) / 200 == pytest.approx(0.5, abs=4 * (0.25 / 200) ** 0.5)


def space(**narrowed: str) -> SearchSpace:
    return SearchSpace.around(tiny_config(), decoder_levels=LEVELS, narrowed=narrowed)


@pytest.mark.parametrize("env", ["Burgers-v0", "Darcy-v0", "Helmholtz-v0", "Kolmogorov-v0", "Poisson-v0"])
@pytest.mark.parametrize("preset", ["smoke", "small", "paper"])
def test_the_space_around_each_preset_holds_it(preset: str, env: str) -> None:
    config = PRESETS[preset](env)
    made = SearchSpace.around(config, decoder_levels=3)
    assert made.outside() == [] and made.regularizer == ("l2" if preset == "paper" else "anchor")
    trial = optuna.trial.FixedTrial({"layer_mode": config.parameters_settings.layer_mode, **made.preset()})
    again = made.run_config(made.suggest(trial))
    if preset == "paper":  # what a prefix that serves one update needs of staleness is less than the preset allows
        again = replace(again, rollout=replace(again.rollout, staleness=config.rollout.staleness))
    assert again == config


def test_what_is_narrowed_and_varied_is_searched() -> None:
    made = SearchSpace.around(
        tiny_config(),
        decoder_levels=LEVELS,
        narrowed={"truncation": "1,2", "regularization": "1e-4:1e1", "levels": "0"},
        varied={"ema-decay": "0.9,0.95", "updates": "3"},
    )
    texts = made.texts()
    assert texts["truncation"] == "1,2" and texts["regularization"] == "0.0001:10" and texts["ema_decay"] == "0.9,0.95"
    assert all(text in str(made) for text in texts.values()) and "strength of anchor" in str(made)
    trial = optuna.create_study().ask()
    config = made.run_config(made.suggest(trial))
    assert config.optimizer.updates == 3 and config.optimizer.ema_decay in (0.9, 0.95) and config.parameters_settings.levels == 0
    assert config.regularizers_settings.anchor == trial.params["regularization"]
    assert {"updates", "levels", "layer_mode"}.isdisjoint(trial.params)


@pytest.mark.parametrize(
    ("narrowed", "varied", "message"),
    [
        ({"truncation": "1,9"}, {}, r"a run that cannot be: --truncation must be in \[1, "),
        ({"levels": "0,3"}, {}, r"--levels must be in \[0, 2\]"),
        ({"layer_mode": "freeze"}, {"nothing": "1"}, "--vary nothing: no setting of a run"),
        ({}, {"anchor": "1:2"}, "--vary anchor: this is --regularization"),
        ({}, {"pool-growth": "1"}, "--vary pool-growth: this is --reuse"),
        ({}, {"batch": "3"}, "a run that cannot be: --batch must be a multiple of --chunk"),
        ({}, {"updates": "x"}, "--vary updates needs whole numbers"),
    ],
)
def test_what_cannot_be_searched_is_named(narrowed: dict[str, str], varied: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchSpace.around(tiny_config(), decoder_levels=LEVELS, narrowed=narrowed, varied=varied)


def test_reuse_of_a_pool_is_its_growth_and_of_fresh_prefixes_their_staleness() -> None:
    pool = space(reuse="4")
    params = pool.suggest(optuna.create_study().ask())
    assert pool.run_config(params).rollout.pool_growth == tiny_config().optimizer.batch / 4
    config = tiny_config(**EXACT)
    fresh = SearchSpace.around(config, decoder_levels=LEVELS, narrowed={"reuse": "3"})
    rollout = fresh.run_config(fresh.suggest(optuna.create_study().ask())).rollout
    assert (rollout.reuse, rollout.staleness) == (3, 2)
    with pytest.raises(ConfigError, match=r"--reuse must be whole"):
        SearchSpace.around(config, decoder_levels=LEVELS, narrowed={"reuse": "1.5"})


def test_a_layer_mode_is_asked_for_only_where_levels_are_cut() -> None:
    made = space(levels="0,1", layer_mode="freeze,truncate")
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    seen = {(params["levels"], params.get("layer_mode")) for params in (made.suggest(study.ask()) for _ in range(40))}
    assert seen == {(0, None), (1, "freeze"), (1, "truncate")}


def test_the_preset_outside_the_space_is_said() -> None:
    made = space(truncation="1")
    assert made.outside() == [] and "truncation" not in made.preset()
    assert space(learning_rate="1:2").outside() == ["learning_rate"]


def test_every_setting_of_a_run_can_be_varied() -> None:
    config = tiny_config(l2=0.0, anchor=0.0)
    kinds = setting_kinds(config)
    assert kinds["updates"] is int and kinds["ema_decay"] is float and kinds["schedule"] is str
    assert set(kinds) == set(flat(config)) - {"env", "resolution", "weights", "regularizers"}
    assert SearchSpace.around(config, decoder_levels=LEVELS).texts()["regularization"] == "0.0001:10"
    assert SearchSpace.around(replace(config, optimizer=OptimizerSettings(batch=4, micro_batch=4)), decoder_levels=LEVELS)


def test_a_yes_or_no_is_varied_by_its_text() -> None:
    config = tiny_config(
        objective="policy-gradient",
        solver="stochastic",
        regularizers=("l2",),
        strategy="fresh",
        group=2,
        truncation=2,
        normalize=False,
    )
    made = SearchSpace.around(config, decoder_levels=LEVELS, varied={"normalize": "true,false", "kl-in-return": "true"})
    assert made.preset()["normalize"] == "false" and made.regularizer == "l2"
    for asked, normalize in (("true", True), ("false", False)):
        trial = optuna.trial.FixedTrial(
            {"layer_mode": "freeze", **made.preset(), "levels": 0, "normalize": asked, "regularization": 0.05}
        )
        run = made.run_config(made.suggest(trial))
        assert (run.credit_settings.normalize, run.objective_settings.kl_in_return) == (normalize, True)
        assert run.regularizers_settings.l2 == 0.05
    with pytest.raises(ConfigError, match="--vary normalize: expected true or false, got 'maybe'"):
        SearchSpace.around(config, decoder_levels=LEVELS, varied={"normalize": "maybe"})


def test_a_run_without_the_regularizer_is_told() -> None:
    config = tiny_config(regularizers=("l2",))
    with pytest.raises(ConfigError, match=r"--regularizer anchor: this run has other regularizers \(l2\)"):
        SearchSpace.around(config, decoder_levels=LEVELS, regularizer="anchor")
    assert SearchSpace.around(config, decoder_levels=LEVELS).regularizer == "l2"


def test_values_of_each_goal() -> None:
    assert METRICS.values("residual") == (-3.0,)
    assert METRICS.values("fidelity") == (0.06,)
    assert METRICS.values("frontier") == (-3.0, 0.06)
    assert replace(METRICS, residual=math.inf).values("residual") == (math.inf,)
    assert replace(METRICS, energy=math.nan).values("frontier") == (-3.0, math.inf)


def test_constraints_hold_what_the_guard_holds_and_never_a_residual_under_the_floor() -> None:
    for goal in ("residual", "fidelity", "frontier"):
        assert kept(METRICS.constraints(goal, LIMITS))
        assert not kept(replace(METRICS, below_floor=True).constraints(goal, LIMITS))
    outside = {
        "energy distance": {"energy_ratio": 1.06},
        "amplitude": {"amplitude_ratio": 0.97},
        "spectrum": {"spectrum_rise": 0.2},
    }
    for name, change in outside.items():
        broken = replace(METRICS, **change).constraints("residual", LIMITS)
        assert [n for n, value in broken.items() if value > 0] == [name]
    assert replace(METRICS, energy_ratio=math.nan).constraints("residual", LIMITS)["energy distance"] == BROKEN
    assert not kept(replace(METRICS, residual=0.02).constraints("fidelity", LIMITS))


def test_metrics_of_a_result_are_of_the_rewarded_operator_and_relative_to_the_base_model() -> None:
    result = evaluation_result(
        base=set_metrics(0.5, {"a": 1.0, "u": 1.1}, energy=0.05, spectrum=0.3),
        tuned=set_metrics(0.01, {"a": 1.02, "u": 0.99}, energy=0.04, spectrum=0.1),
    )
    found = TrialMetrics.of(result)
    assert (found.residual, found.base_residual, found.energy_ratio) == (0.01, 0.5, pytest.approx(0.8))
    assert (found.energy, found.resolve, found.over_floor, found.below_floor) == (0.04, 0.1, pytest.approx(10), False)
    assert found.residual_ratio == pytest.approx(0.02)
    assert found.amplitude_ratio == pytest.approx(0.9)  # of u: .99 of 1.1, farther from 1 than a's 1.02
    assert found.spectrum_rise == pytest.approx(-0.2)


def test_metrics_that_old_studies_hold_are_read() -> None:
    """The names are those of the first version, and what is not finite is text."""
    stored = {
        "residual": "inf",
        "over_floor": "nan",
        "below_floor": True,
        "base_residual": 0.1,
        "energy": 0.06,
        "energy_ratio": 1.01,
        "amplitude_ratio": 0.99,
        "spectrum_rise": -0.1,
        "resolve": 0.02,
    }
    found = TrialMetrics.from_json(stored)
    assert found.residual == math.inf and math.isnan(found.over_floor) and found.below_floor is True
    assert found.to_json() == stored
    assert TrialMetrics.from_json(METRICS.to_json()) == METRICS
