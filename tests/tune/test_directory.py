"""The directory of a sweep: created, resumed, read in older forms, reported, exported. No Ray Tune: its trials run here."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from commands import refuse
from envs.common.checks import ConfigError
from envs.common.files import DirectoryTakenError, FileFormatError, locked
from pirf_ray.diffusion.checkpoints import CheckpointError
from pirf_ray.training.models import load_model
from pirf_ray.training.runs import load_settings
from places import ROOT
from sweep_metrics import METRICS
from tiny_models import write_base
from tune import report, sweep
from tune.directory import SETTINGS, Sweep, created, load, resumed
from tune.export import EXPORTED, export
from tune.halving import rungs
from tune.heldout import TEST, Comparison, compare, heldout_table
from tune.searching import search
from tune.settings import Arguments, Space
from tune.studies import SweepStudy
from tune.trial_log import ConsoleLog
from tune.trials import TrialJob, run_trial

SMALL = Space(num_steps="5", vary={"updates": "2", "guard": "off"})


def arguments(path: Path, **changes: object) -> Arguments:
    base = path / "base" if (path / "base").exists() else write_base(path / "base")
    settings = {
        "preset": "smoke",
        "base": base,
        "out": path / "sweep",
        "samples": 4,
        "real": 8,
        "trial_cpus": 0.5,
        "space": SMALL,
    }
    return Arguments(**{**settings, **changes})


def run_here(subject: Sweep, study: SweepStudy, trials: int) -> None:
    """Run trials in this process, as Ray Tune does in others."""
    study.enqueue_preset()
    job = TrialJob(trials=subject.trials, base=subject.base, mode="in-process", threads=1)
    for _ in range(trials):
        suggestion = study.next()
        metrics = run_trial(job, suggestion.number, subject.space.run_config(suggestion.params), lambda *_: None)
        study.finish(suggestion.number, metrics)


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    """Trials without drawings, which take longer than their training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pirf_ray.evaluation.report.draw_report", lambda path, **_: path.write_bytes(b"PNG"))
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Sweep, SweepStudy]:
    """A sweep of two finished trials."""
    subject = created(arguments(tmp_path_factory.mktemp("done"), num_trials=2))
    study = subject.study()
    run_here(subject, study, 2)
    return subject, study


def test_a_sweep_is_read_back_and_resumed_with_its_own_settings(tmp_path: Path) -> None:
    made = created(arguments(tmp_path, goal="frontier", num_trials=3, storage="sqlite:////nowhere/secret.db"))
    text = (made.root / SETTINGS).read_text()
    assert "secret" not in text
    again = load(made.root)
    assert (again.config, again.space, again.identity, again.total) == (made.config, made.space, made.identity, 3)
    assert again.limits == made.limits and again.arguments.goal == "frontier"
    with pytest.raises(ConfigError, match="storage of your own; give its --storage again"):
        resumed(Arguments(resume=made.root))
    larger = resumed(Arguments(resume=made.root, num_trials=5, test=0, storage="sqlite://"))
    assert (larger.total, larger.arguments.test, larger.arguments.storage) == (5, 0, "sqlite://")
    assert load(made.root).total == 5 and "sqlite" not in (made.root / SETTINGS).read_text()
    with pytest.raises(ConfigError, match="--resume continues a sweep as it is: --goal, --truncation cannot be given with it"):
        resumed(Arguments(resume=made.root, goal="fidelity", space=Space(truncation="1")))
    with pytest.raises(ConfigError, match=r"the sweep is of Burgers-v0, not of --env Darcy-v0"):
        resumed(Arguments(resume=made.root, env="Darcy-v0"))


def test_a_directory_of_an_older_version_is_read(tmp_path: Path) -> None:
    """Settings were in other groups there, and the parts of a training had no names but the objective's."""
    made = created(arguments(tmp_path))
    stored = json.loads((made.root / SETTINGS).read_text())
    config = stored["config"]
    for part in ("reward", "maker", "credit", "parameters", "regularizers"):
        del config[part]
    config["reward"], config["regularization"] = config.pop("reward_settings"), config.pop("regularizers_settings")
    own = {**config.pop("parameters_settings"), "lora_rank": 0}
    config["pirf"] = {"objective": config.pop("objective"), **config.pop("policy"), **own}
    for part in ("objective", "maker", "credit"):
        assert config.pop(f"{part}_settings") == ({"path_kl": 0.0} if part == "objective" else {})
    config["sampler"] |= config.pop("correction")
    config["rollout"] |= config.pop("actor")
    (made.root / SETTINGS).write_text(json.dumps(stored))
    assert load(made.root).config == made.config


def test_the_command_that_continues_names_the_users_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIRF_RAY_PDES", "")
    made = created(arguments(tmp_path))
    assert made.resume_command == f"python -m tune.sweep --resume {made.root}"
    monkeypatch.setenv("PIRF_RAY_PDES", "mine,yours")
    assert made.resume_command == f"PIRF_RAY_PDES=mine,yours python -m tune.sweep --resume {made.root}"


def test_files_that_are_no_sweep_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match=re.escape(f"{tmp_path / SETTINGS}: no such file")):
        load(tmp_path)
    (tmp_path / SETTINGS).write_text('{"config": {}}')
    with pytest.raises(CheckpointError, match="not a sweep's settings"):
        load(tmp_path)


@pytest.mark.parametrize("setting", ["objective", "parameters", "credit", "maker", "reward"])
def test_names_of_parts_among_varied_values_are_checked_before_they_are_imported(
    setting: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('the code was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PIRF_RAY_PDES", "")
    made = created(arguments(tmp_path))
    stored = json.loads((made.root / SETTINGS).read_text())
    stored["arguments"]["space"]["vary"] = {setting: "x, trap:y"}
    (made.root / SETTINGS).write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="names code of the module 'trap'"):
        load(made.root)


def test_nothing_is_made_of_what_cannot_run(tmp_path: Path) -> None:
    refusals = {
        "unknown objective 'nothing'": {"space": Space(vary={"objective": "pathwise,nothing"})},
        "one in-process trial needs 500 CPUs and 0 GPUs in 1 pieces": {"trial_cpus": 500.0},
        "one in-process trial needs 0.5 CPUs and 64 GPUs in 1 pieces": {"trial_gpus": 64.0},
    }
    for message, change in refusals.items():
        with pytest.raises(ValueError, match=message):
            created(arguments(tmp_path, **change))
        assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_trials": 0}, "--num-trials must be at least 1, got 0"),
        ({"at_once": 0}, "--at-once must be at least 1, got 0"),
        ({"samples": 1}, "--samples must be at least 2, got 1"),
        ({"trial_cpus": 0.0}, r"--trial-cpus must be positive, got 0\.0"),
        ({"trial_gpus": -1.0}, "--trial-gpus must not be negative"),
        ({"residual_limit": 0.0}, "--residual-limit must be positive"),
        ({"test": 1}, "--test must be 0 or at least 2, got 1"),
        ({"seed": -1}, "--seed must not be negative"),
    ],
)
def test_settings_that_cannot_work_name_their_flag(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Arguments(**change)


def test_rungs_wait_for_the_first_guard_evaluation(tmp_path: Path) -> None:
    made = created(arguments(tmp_path, space=Space(vary={"updates": "20,60"})))
    assert made.config.guard.guard_every == 2 and rungs(made) == (15, 60)
    assert rungs(created(arguments(tmp_path, out=tmp_path / "other", space=Space()))) == (2, 4)


def test_a_sweep_that_is_done_starts_nothing(done: tuple[Sweep, SweepStudy]) -> None:
    printed = StringIO()
    search(*done, Console(file=printed, width=200))
    assert printed.getvalue() == "all 2 trials are done; a larger --num-trials adds more\n"


def test_events_are_one_line_each(done: tuple[Sweep, SweepStudy]) -> None:
    printed = StringIO()
    log = ConsoleLog(done[1], Console(file=printed, width=40), total=4)
    log.started(1, {"truncation": 2, "learning_rate": 1.23456e-4})
    log.finished(1, METRICS)
    log.stopped(2, 15)
    log.failed(3, "out of memory")
    log.halted(0, "disk full")
    assert [re.sub(r"[\d.]+ min", "T", line) for line in printed.getvalue().splitlines()] == [
        "[2/4, T] trial 1 starts: truncation 2, learning_rate 0.000123",
        "[2/4, T] trial 1 finished: residual 0.001 (0.01 x base), energy distance 0.06 (1.010 x base)",
        "[2/4, T] trial 2 stopped: at update 15, where others were better",
        "[2/4, T] trial 3 failed: out of memory",
        "[2/4, T] trial 0 halted: disk full",
    ]


def test_preset_and_best_are_compared_on_other_noise_and_the_page_shows_it(done: tuple[Sweep, SweepStudy]) -> None:
    subject, study = done
    comparison = compare(subject, study, samples=4, device="cpu")
    stored = json.loads((subject.root / TEST).read_text())
    assert (
        Comparison.from_json(stored) == comparison and stored["best"]["figures"]["residual"] == comparison.best.metrics.residual
    )
    assert comparison.preset is not None and comparison.preset.trial == 0 and comparison.seed == subject.config.seed + 10_000
    metrics = comparison.preset.metrics
    assert metrics != study.own()[0].user_attrs["figures"]
    table = heldout_table(comparison)
    assert [row[0] for row in table.rows] == ["preset", "best"] and table.rows[0][3] == f"{metrics.residual:.4g}"
    report.main([str(subject.root)])
    page = (subject.root / "report.html").read_text()
    assert table.title in page and "<script" not in page and "Importance needs at least 4 finished trials" in page
    assert all((subject.root / name).stat().st_size > 1000 for name in ("frontier.png", "parallel.png"))


def test_a_preset_that_failed_is_not_compared(tmp_path: Path) -> None:
    subject = created(arguments(tmp_path, num_trials=2))
    study = subject.study()
    study.enqueue_preset()
    study.fail(study.next().number, "out of memory")
    run_here(subject, study, 1)
    comparison = compare(subject, study, samples=4, device="cpu")
    assert comparison.preset is None and comparison.best.trial == 1
    assert [row[0] for row in heldout_table(comparison).rows] == ["best"]
    assert Comparison.from_json(comparison.to_json()) == comparison


def test_the_best_trial_of_another_sweep_is_reported_and_not_compared(tmp_path: Path) -> None:
    """Two sweeps on one study: only one of them has the best trial's run."""
    storage = f"sqlite:///{tmp_path / 'shared.db'}"
    one, other = (created(arguments(tmp_path, out=tmp_path / name, storage=storage)) for name in ("one", "other"))
    foreign = other.study()
    foreign.enqueue_preset()
    foreign.finish(foreign.next().number, METRICS)
    report.main([str(one.root), "--storage", storage])
    assert (one.root / "report.html").is_file(), "a sweep without a trial of its own"
    study = one.study()
    run_here(one, study, 1)
    assert compare(one, study, samples=4, device="cpu").best.trial == 1
    with pytest.raises(ConfigError, match="trial 0 has no run in .*: another sweep of this study made it"):
        export(one, study, "0", tmp_path / "out")


def test_an_exported_trial_is_a_model_and_a_settings_file(done: tuple[Sweep, SweepStudy], tmp_path: Path) -> None:
    subject, study = done
    before = os.umask(0o022)
    number = export(subject, study, "1", tmp_path / "deep/out")
    os.umask(before)
    out = tmp_path / "deep/out"
    assert number == 1 and {path.name for path in out.iterdir()} == {*EXPORTED, "base", "checkpoints"}
    assert load_settings(out / "config.json") == load_model(out).config == load_settings(subject.run(1) / "config.json")
    assert all(path.stat().st_mode & 0o055 == 0o055 for path in out.rglob("*") if path.is_dir()), "others may enter"
    with pytest.raises(DirectoryTakenError, match="nothing is ever overwritten"):
        export(subject, study, "0", out)
    with pytest.raises(ConfigError, match="--export 99: not a finished trial; there are "):
        export(subject, study, "99", tmp_path / "x")


def test_export_and_out_belong_together(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for flags in (["--export", "best"], ["--out", "x"]):
        assert "--export needs --out" in refuse(report.main, [str(tmp_path), *flags], capsys)
    created(arguments(tmp_path))
    assert "no trial is finished yet" in refuse(report.main, [str(tmp_path / "sweep")], capsys)


def test_a_sweep_runs_in_one_process_only(done: tuple[Sweep, SweepStudy], capsys: pytest.CaptureFixture[str]) -> None:
    with locked(done[0].root, "this sweep"):
        assert "another process is running this sweep" in refuse(sweep.main, ["--resume", str(done[0].root)], capsys)


def test_bad_flags_cost_no_import_of_ray() -> None:
    """It takes seconds, and its switches depend on --address, which is parsed first."""
    code = "import sys, tune.sweep, tune.report; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
