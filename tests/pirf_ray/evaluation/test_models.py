"""Evaluation of models and runs: held-out fields, named metrics, the reward of the run."""

import json
import sys
from pathlib import Path

import pytest
import torch

from bare_pdes import Heat, clouds
from commands import refuse
from envs.common.checks import ConfigError
from envs.common.registry import VARIABLE
from envs.data.datasets import FieldFile
from envs.pdes.base import NotProvided
from envs.rewards import REWARDS
from pirf_ray import evaluate
from pirf_ray.evaluation.models import evaluate_model, evaluate_run, fitting_counts, held_out, reported_reward
from pirf_ray.evaluation.tables import result_table
from pirf_ray.metrics import METRICS
from pirf_ray.training.models import load_model
from pirf_ray.training.outcome import Outcome
from pirf_ray.training.runs import RunDirectory
from recorded_reward import RecordedReward
from registries import restored
from tiny_models import start_run, tiny_config, tiny_info, tiny_tuning, write_base
from tiny_pretraining import PDE8

OWN = """
from envs.rewards import reward
from pirf_ray.metrics import metric

@reward("small-fields", differentiable=False)
def small_fields(fields):
    "Minus the mean square of the field."
    return -fields.square().flatten(1).mean(1)

@metric("mean-level")
def mean_level(fields, real, pde):
    "Mean of all values."
    return fields.mean()
"""
PROGRAM = """
import envs.rewards

envs.rewards.serve(lambda fields: -(fields**2).mean((1, 2, 3)))
"""
SIZES = ["--samples", "4", "--real", "6", "--threads", "1"]
OUTCOME = Outcome(updates=2, finished=True, stopped_by_guard=False, kept_update=2, actors_lost=0)
QUICK = {"updates": 2, "guard": "off", "corrections": 0, "objective": "preference", "group": 2, "regularizers": ("l2",)}


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user's module in the working directory, with a reward and a metric."""
    restored(REWARDS, monkeypatch)
    restored(METRICS, monkeypatch)
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_parts", raising=False)
    monkeypatch.setattr("pirf_ray.evaluation.report.draw_report", lambda path, **_: None)
    (tmp_path / "own_parts.py").write_text(OWN)


def tuned(path: Path, reward: str) -> RunDirectory:
    """Return a finished run with a reward."""
    config = tiny_config(**{**QUICK, "reward": reward}, strategy="fresh")
    run = start_run(path, config)
    tiny_tuning(config, run).fit()
    return run


def mean_squares(fields: torch.Tensor) -> float:
    return -fields.double().square().mean().item()


# --- held-out fields ---


def test_held_out_fields_are_solved_or_read(data: FieldFile) -> None:
    assert torch.equal(held_out(PDE8, count=5, seed=3, data=None), PDE8.solve(3, "test", range(5)).float())
    assert torch.equal(held_out(PDE8, count=5, seed=3, data=data.path), data.read(range(5)))


def test_too_few_held_out_fields_name_the_flags(data: FieldFile, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--data .*train\.h5 holds 64 samples; --real and --samples need 65 together"):
        held_out(PDE8, count=65, seed=0, data=data.path)
    with pytest.raises(ConfigError, match="Clouds-v0 has 10 stored test samples; --real and --samples need 11 together"):
        held_out(clouds(tmp_path)(), count=11, seed=0, data=None)
    with pytest.raises(NotProvided, match=r"Heat-v0 has no solver \(solve\): .*; give a file of them: --data FILE"):
        held_out(Heat(), count=2, seed=0, data=None)


@pytest.mark.parametrize(
    ("rows", "asked", "fitting"),
    [(50, (16, 32), (3, 7)), (50, (2, 4), (2, 4)), (50, (2000, 8), (8, 2)), (20, (256, 1024), (2, 2))],
)
def test_fewer_fields_are_split_in_proportion(
    rows: int, asked: tuple[int, int], fitting: tuple[int, int], tmp_path: Path
) -> None:
    """A fifth of the rows is held out."""
    pde = clouds(tmp_path, rows=rows)()
    assert fitting_counts(pde, samples=asked[0], real=asked[1], data=None) == fitting


def test_a_solver_and_a_large_file_fit_everything(data: FieldFile, tmp_path: Path) -> None:
    assert fitting_counts(PDE8, samples=1000, real=2000, data=None) == (1000, 2000)
    assert fitting_counts(PDE8, samples=32, real=32, data=data.path) == (32, 32)
    assert fitting_counts(PDE8, samples=32, real=96, data=data.path) == (16, 48)
    with pytest.raises(ConfigError, match="Clouds-v0 has 2 held-out fields, an evaluation needs at least 4"):
        fitting_counts(clouds(tmp_path, rows=10)(), samples=2, real=2, data=None)


# --- the reward of a run, and named metrics ---


def test_only_a_reward_that_is_no_physics_reward_is_reported(tmp_path: Path) -> None:
    pde = tiny_info().pde()
    assert reported_reward(tiny_config(), pde) is None
    reward = reported_reward(tiny_config(reward="own_parts:small-fields"), pde)
    assert reward is not None and not reward.differentiable


def test_the_evaluation_of_a_run_reports_its_reward_before_and_after(tmp_path: Path) -> None:
    """float32 sums of 64 values against float64."""
    run = tuned(tmp_path, "own_parts:small-fields")
    evaluation = evaluate_run(run, OUTCOME, data=None, progress=iter, device="cpu")
    written = json.loads(run.paths.result.read_text())
    assert evaluation.result.sets.keys() == {"base", "tuned", "data"}
    for name, fields in evaluation.sets.items():
        assert evaluation.result[name].named == {"reward": pytest.approx(mean_squares(fields), rel=1e-5)}
        assert written[name]["metric/reward"] == evaluation.result[name].named["reward"]
    assert written["base"]["metric/reward"] != written["tuned"]["metric/reward"]
    first = next(iter(result_table(evaluation.result).columns[0].cells))
    assert first == "mean reward"


def test_a_physics_reward_changes_no_name(tmp_path: Path) -> None:
    config = tiny_config(updates=1, guard="off")
    run = start_run(tmp_path, config)
    tiny_tuning(config, run).fit()
    result = evaluate_run(run, OUTCOME, data=None, progress=iter, device="cpu").result
    assert not [name for metrics in result.sets.values() for name in metrics.to_json() if name.startswith("metric/")]


def test_a_reward_of_sets_is_asked_once_per_set(tmp_path: Path) -> None:
    model, reward = load_model(write_base(tmp_path / "base")).model, RecordedReward(scope="set")
    evaluate_model(model, samples=5, real=6, seed=0, groups=("base",), reward=reward)
    assert reward.rows == [5, 5]


def test_the_command_adds_metrics_and_the_reward(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run with a reward of the user's module, which the user names."""
    run, out = tuned(tmp_path, "own_parts:small-fields"), tmp_path / "result.json"
    flags = ["--checkpoint", str(run.paths.root), *SIZES, "--out", str(out)]
    evaluate.main([*flags, "--metrics", "own_parts:mean-level", "energy-distance"])
    table, written = capsys.readouterr().out, json.loads(out.read_text())
    for name in ("base", "tuned", "data"):
        named = {key for key in written[name] if key.startswith("metric/")}
        assert named == {"metric/reward", "metric/mean-level", "metric/energy-distance"}
        assert written[name]["metric/energy-distance"] == written[name]["fidelity/energy_distance"]
        assert f"{written[name]['metric/reward']:.4g}" in table and f"{written[name]['metric/mean-level']:.4g}" in table
    assert table.index("mean reward") < table.index("residual consistent") < table.index("mean-level")


def test_any_reward_can_be_reported_of_any_model(tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    flags = ["--checkpoint", str(write_base(tmp_path / "base")), *SIZES, "--out", str(out)]
    evaluate.main([*flags, "--reward", "own_parts:small-fields"])
    assert json.loads(out.read_text())["base"]["metric/reward"] < 0


def test_a_runs_program_starts_only_if_it_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A settings file starts no program."""
    (tmp_path / "reward.py").write_text(PROGRAM)
    program = f"command:{sys.executable} {tmp_path / 'reward.py'}"
    run, out = tuned(tmp_path, program), tmp_path / "result.json"
    flags = ["--checkpoint", str(run.paths.root), *SIZES]
    (tmp_path / "reward.py").rename(tmp_path / "moved.py")
    evaluate.main([*flags, "--out", str(tmp_path / "without.json")])
    said = capsys.readouterr()
    assert f"the run's reward is a program; --reward {program!r} starts it" in said.err and "mean reward" not in said.out
    (tmp_path / "moved.py").rename(tmp_path / "reward.py")
    evaluate.main([*flags, "--out", str(out), "--reward", program])
    assert json.loads(out.read_text())["tuned"]["metric/reward"] < 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics", "beauty"], "--metrics: unknown metric 'beauty'; known: amplitude-ratio"),
        (["--metrics", "nowhere:beauty"], "--metrics nowhere:...: no module 'nowhere'"),
        (["--reward", "beauty"], "--reward: unknown reward 'beauty'; known: "),
        (["--reward", "own_parts:OWN"], "--reward: unknown reward 'own_parts:OWN'"),
        (
            ["--interpolate", "0:1:0.5", "--metrics", "energy-distance"],
            "--interpolate has metrics of its own, leave out --metrics",
        ),
        (["--interpolate", "0:1:0.5", "--reward", "physics"], "--interpolate has metrics of its own, leave out --reward"),
    ],
)
def test_wrong_names_are_refused_before_anything_is_sampled(
    flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pirf_ray.diffusion.model.Model.sample", None)
    assert message in refuse(evaluate.main, ["--checkpoint", str(write_base(tmp_path / "base")), *SIZES, *flags], capsys)


def test_an_object_that_is_no_reward_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "own_parts.py").write_text("thing = 3\n")
    flags = ["--checkpoint", str(write_base(tmp_path / "base")), *SIZES, "--reward", "own_parts:thing"]
    assert "--reward own_parts:thing: reward 'own_parts:thing' must be a Reward" in refuse(evaluate.main, flags, capsys)
