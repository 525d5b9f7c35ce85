"""Settings of a training: named parts with their settings, changes by name, JSON."""

import dataclasses
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest

from envs.common.checks import ConfigError
from envs.rewards import CommandSettings
from pirf_ray.diffusion.policy import PolicySettings
from pirf_ray.learning.credit.group import GroupSettings
from pirf_ray.learning.objectives import OBJECTIVES
from pirf_ray.learning.objectives.policy_gradient import PolicyGradientSettings
from pirf_ray.learning.parameters.low_rank import LowRankSettings
from pirf_ray.training.presets import PRESETS
from pirf_ray.training.runs import RunDirectory
from pirf_ray.training.settings import TrainConfig, named_parts
from tiny_models import start_run, tiny_config

VARIED: dict[str, dict[str, Any]] = {
    "default": {},
    "low-rank": {"parameters": "low-rank", "lora_rank": 3, "levels": 1},
    "policy-gradient": {"objective": "policy-gradient", "kl": 0.5, "ratio": "sequence", "normalize": False, "truncation": 3},
    "surrogate": {"objective": "surrogate", "surrogate_width": 8, "reference_densities": False},
    "program": {"objective": "preference", "reward": "command:python3 score.py", "reward_time_limit": 5.0},
    "no regularizer": {"regularizers": ()},
    "terms": {"weights": {"initial": 0.3}, "operator": "simpson"},
}


@pytest.mark.parametrize("settings", VARIED.values(), ids=VARIED)
def test_settings_are_read_back_from_json_and_travel(settings: dict[str, Any]) -> None:
    config = tiny_config(**settings)
    assert TrainConfig.from_json(config.to_json()) == config
    assert pickle.loads(pickle.dumps(config)) == config
    assert config.with_settings() == config


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("objective", sorted(OBJECTIVES))
def test_every_objective_is_a_change_of_every_preset(preset: str, objective: str) -> None:
    """Another objective brings what its rollouts need, so that its name alone makes a run. Only draft-lv says what it needs."""
    config = PRESETS[preset]("Burgers-v0").with_settings(objective=objective)
    assert config.objective == objective
    assert type(config.objective_settings) is type(OBJECTIVES.settings(objective))
    assert TrainConfig.from_json(config.to_json()) == config


def test_a_changed_part_brings_its_settings_and_keeps_those_of_the_same_name() -> None:
    config = tiny_config(levels=1, layer_mode="truncate")
    changed = config.with_settings(parameters="low-rank")
    assert changed.parameters_settings == LowRankSettings(levels=1, layer_mode="truncate")
    assert changed.with_settings(parameters="layers") == config


def test_parts_and_their_settings_change_together() -> None:
    config = tiny_config().with_settings(objective="policy-gradient", kl=0.25, normalize=False)
    assert config.objective_settings == PolicyGradientSettings(kl=0.25)
    assert (config.credit_name, config.credit_settings) == ("group", GroupSettings(normalize=False))
    assert (config.maker_name, config.maker) == ("trajectories", "")


def test_settings_of_a_part_that_was_not_chosen_are_unknown() -> None:
    with pytest.raises(ValueError, match="unknown settings: kl, lora_rank"):
        tiny_config(lora_rank=2, kl=0.1)
    with pytest.raises(ValueError, match="unknown settings: anchor"):
        tiny_config(regularizers=("l2",), anchor=1.0)


def test_what_was_asked_for_stands_against_what_an_objective_needs() -> None:
    config = tiny_config(objective="policy-gradient", scope="tail", truncation=2, group=2, regularizers=())
    assert config.policy == PolicySettings(scope="tail", truncation=2)
    assert (config.rollout.group, config.regularizers, config.sampler.solver) == (2, (), "stochastic")


def test_a_truncation_of_zero_is_all_steps() -> None:
    config = tiny_config(scope="all", strategy="fresh", truncation=0)
    assert (config.truncation_steps, config.prefix_steps) == (4, 0)
    assert config.rollout_task({}).context.stop_step == 0
    assert tiny_config(truncation=3).prefix_steps == 1


@pytest.mark.parametrize(
    ("settings", "fixed"),
    [
        ({}, True),
        ({"scope": "all", "strategy": "fresh"}, False),
        ({"objective": "preference"}, True),
        ({"objective": "preference", "online": True}, False),
        ({"objective": "policy-gradient", "scope": "tail"}, False),
        ({"objective": "denoising"}, True),
    ],
)
def test_rollouts_that_never_go_stale_are_known(settings: dict[str, Any], fixed: bool) -> None:
    """Prefixes of the base model, samples of the base model, data. Only these may be drawn from a pool."""
    config = tiny_config(**settings)
    assert config.fixed_rollouts == fixed
    if not fixed:
        with pytest.raises(ConfigError, match="--strategy pool needs rollouts that the base model makes"):
            config.with_settings(strategy="pool")


def test_groups_must_fill_chunks() -> None:
    with pytest.raises(ConfigError, match="--chunk must be a multiple of --group 3, got 2"):
        tiny_config(group=3)


def test_the_operator_is_that_of_a_physics_reward() -> None:
    assert tiny_config(operator="simpson").operator == "simpson" and tiny_config().operator == ""
    assert tiny_config(objective="preference", reward="command:score").operator == ""


def test_the_names_of_parts_are_found_in_every_group() -> None:
    data = {
        "objective": "a",
        "guard": {"maker": "b", "samples": 3},
        "regularizers": ["c", "d"],
        "env": "e",
        "weights": {"f": 1.0},
    }
    assert {name for name in named_parts(data) if name} == {"a", "b", "c", "d", "e"}


def test_settings_cannot_be_changed_in_place() -> None:
    config = tiny_config()
    for group in (config, config.reward_settings, config.policy):
        with pytest.raises(dataclasses.FrozenInstanceError):
            group.anything = 1


def test_a_program_of_a_run_starts_where_the_user_named_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers and later commands run in other directories, and a path like ``./score.py`` means another file there."""
    monkeypatch.chdir(tmp_path)
    config = tiny_config(objective="policy-gradient", reward=f"command:{sys.executable} score.py")
    run = start_run(tmp_path, config)
    monkeypatch.chdir("/")
    stored = RunDirectory.open(run.paths.root, given=None).config.reward_settings
    assert isinstance(stored, CommandSettings)
    assert Path(stored.reward_directory) == tmp_path


def test_samples_of_a_run_need_no_code_that_trained_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the learning parameters' code is needed. A run that continues is refused without its objective's code."""
    monkeypatch.setenv("PIRF_RAY_PDES", "")
    run = start_run(tmp_path, tiny_config(objective="policy-gradient", kl=0.5))
    data = json.loads(run.paths.config.read_text())
    data["objective"] = "strange:objective"
    data["objective_settings"] = {"strangeness": 1}
    run.paths.config.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="names code of the module 'strange'"):
        RunDirectory.open(run.paths.root, given=None)
    config = RunDirectory.open(run.paths.root, given=None, sampling=True).config
    assert (config.objective, config.sampler, config.policy) == ("pathwise", run.config.sampler, run.config.policy)
    data["parameters"] = "strange:parameters"
    run.paths.config.write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="names code of the module 'strange'"):
        RunDirectory.open(run.paths.root, given=None, sampling=True)
