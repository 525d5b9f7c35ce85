"""Flags of ``train``: parts and their settings, settings files, runs that are continued."""

import json
import shlex
from pathlib import Path

import pytest

from commands import refuse
from envs.common.registry import VARIABLE
from pirf_ray import train
from pirf_ray.cli.flags import flag_values
from pirf_ray.cli.runs import open_run, parse_train, resume_command
from pirf_ray.learning.objectives import OBJECTIVES
from pirf_ray.training.runs import RunDirectory
from pirf_ray.training.settings import TrainConfig
from registries import restored
from tiny_models import start_run, tiny_config

SMOKE = ["--preset", "smoke"]


def parsed(*words: str) -> TrainConfig:
    return parse_train([*SMOKE, *words]).arguments.config


def test_all_values_of_a_flag_are_read_before_the_rest() -> None:
    argv = ["--regularizers", "l2", "anchor", "--seed", "3", "--reward=physics", "--objective"]
    assert flag_values(argv, "--regularizers") == ("l2", "anchor")
    assert flag_values(argv, "--reward") == ("physics",)
    assert flag_values(argv, "--objective") == flag_values(argv, "--maker") == ()


@pytest.mark.parametrize("name", sorted(OBJECTIVES))
def test_an_objective_brings_its_own_flags_and_what_its_rollouts_need(name: str) -> None:
    """Its settings stand in the help of the command, and the settings of other objectives do not."""
    truncation = ["--truncation", "1"] if name == "draft-lv" else []
    config = parsed("--objective", name, *truncation)
    assert config.objective == name
    assert type(config.objective_settings) is type(OBJECTIVES.settings(name))
    assert (config.sampler.solver == "stochastic") == OBJECTIVES[name].stochastic


def test_flags_of_chosen_parts_set_their_settings() -> None:
    config = parsed(
        *["--objective", "policy-gradient", "--kl", "0.3", "--kl-in-return", "--no-normalize"],
        *["--parameters", "low-rank", "--lora-rank", "7", "--levels", "2"],
        *["--regularizers", "l2", "--l2", "0.5", "--no-reference-densities"],
    )
    assert (config.objective_settings.kl, config.objective_settings.kl_in_return) == (0.3, True)
    assert (config.parameters_settings.lora_rank, config.parameters_settings.levels) == (7, 2)
    assert config.regularizers == ("l2",) and config.regularizers_settings.l2 == 0.5
    assert not config.credit_settings.normalize and not config.maker_settings.reference_densities


@pytest.mark.parametrize(
    ("words", "flag"),
    [
        (["--kl", "0.3"], "--kl"),
        (["--lora-rank", "2"], "--lora-rank"),
        (["--regularizers", "l2", "--anchor", "3"], "--anchor"),
        (["--objective", "reft", "--path-kl", "1"], "--path-kl"),
    ],
)
def test_flags_of_parts_that_were_not_chosen_are_not_known(
    words: list[str], flag: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        parsed(*words)
    assert ended.value.code == 2 and flag in capsys.readouterr().err


def test_a_settings_file_is_the_default_of_every_flag(tmp_path: Path) -> None:
    config = tiny_config(
        objective="surrogate",
        surrogate_kl=0.2,
        parameters="low-rank",
        lora_rank=3,
        solver="stochastic",
        regularizers=("l2",),
        l2=0.7,
    )
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    found = parse_train(["--settings", str(tmp_path / "config.json"), "--lora-rank", "5"]).arguments.config
    assert found == config.with_settings(lora_rank=5)


def test_parts_of_a_settings_file_can_be_exchanged(tmp_path: Path) -> None:
    """The other settings stay."""
    config = tiny_config(updates=9, anchor=4.0)
    (tmp_path / "config.json").write_text(json.dumps(config.to_json()))
    found = parse_train(["--settings", str(tmp_path / "config.json"), "--parameters", "low-rank"]).arguments.config
    assert found == config.with_settings(parameters="low-rank")
    assert (found.optimizer.updates, found.regularizers_settings.anchor) == (9, 4.0)


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    return start_run(tmp_path, tiny_config(parameters="low-rank", lora_rank=2))


@pytest.mark.parametrize(
    ("words", "flags"),
    [
        (["--objective", "reft"], "--objective"),
        (["--parameters", "layers"], "--parameters"),
        (["--regularizers", "l2"], "--regularizers"),
        (["--parameters", "low-rank", "--lora-rank", "3"], "--lora-rank"),
        (["--seed", "5"], "--seed"),
    ],
)
def test_a_continued_run_keeps_its_parts_and_settings(
    words: list[str], flags: str, run: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refuse(train.main, ["--env", "Burgers-v0", "--resume", str(run.paths.root), *words], capsys)
    assert f"--resume continues a run with its own settings; {flags} would change them" in error


def test_parts_that_the_run_has_may_be_named_again(run: RunDirectory) -> None:
    """As the printed command names a user's own parts."""
    words = ["--env", "Burgers-v0", "--resume", str(run.paths.root), "--parameters", "low-rank", "--regularizers", "l2", "anchor"]
    assert open_run(parse_train(words)).config == run.config


OWN = """
from pirf_ray.learning.objectives import register
from pirf_ray.learning.objectives.pathwise import Pathwise

@register("as-before")
class AsBefore(Pathwise):
    "The pathwise objective."
"""


def test_the_command_that_continues_names_own_parts_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restored(OBJECTIVES, monkeypatch)
    (tmp_path / "own_parts_of_runs.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv(VARIABLE, "")
    plain = start_run(tmp_path / "plain", tiny_config())
    assert resume_command(plain) == f"python -m pirf_ray.train --env Burgers-v0 --resume {plain.paths.root}"
    program = "command:python3 'my score.py' --fast"
    settings = {"objective": "policy-gradient", "reward": program}
    own = [tiny_config(objective="own_parts_of_runs:as-before"), tiny_config(**settings)]
    for name, config in zip(("module", "program"), own, strict=True):
        made = start_run(tmp_path / name, config)
        words = shlex.split(resume_command(made))
        assert words[:3] == ["python", "-m", "pirf_ray.train"]
        assert open_run(parse_train(words[3:])).config == made.config
