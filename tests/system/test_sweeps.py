"""The sweep command over Ray: interrupted, killed, continued; its report and its exports."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
from optuna.trial import TrialState

from commands import FLAGS, SPACE, TRIALS, refuse, states
from pirf_ray import generate
from pirf_ray.training.runs import load_settings
from places import ROOT
from processes import wait_for
from tiny_models import write_base
from tune import report, sweep


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--truncation", "30"], "a run that cannot be: --truncation must be in [1, 10]"),
        (["--truncation", "1:x"], "--truncation needs whole numbers, got 'x'"),
        (["--vary", "colour", "1"], "--vary colour: no setting of a run"),
        (["--num-trials", "0"], "--num-trials must be at least 1"),
        (["--trial-cpus", "500"], "one in-process trial needs 500 CPUs"),
        (["--trial-gpus", "1"], "needs 1 CPUs and 1 GPUs"),
        (["--base", "nowhere"], "nowhere"),
        (["--env", "Burgers"], "unknown env 'Burgers'"),
        (["--vary", "objective", "nothing"], "unknown objective 'nothing'"),
        (["--resume", "nowhere"], "nowhere"),
    ],
)
def test_bad_flags_are_one_line_and_start_nothing(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    error = refuse(sweep.main, flags, capsys)
    assert message in error and len(error.splitlines()) == 1
    assert not (tmp_path / "sweeps").exists()


def test_a_directory_that_holds_something_is_not_swept_into(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    assert "holds another run; continue it with --resume" in refuse(sweep.main, ["--out", str(tmp_path)], capsys)


def command(*arguments: str, **environment: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "tune.sweep", *arguments],
        cwd=ROOT,
        env={**os.environ, **environment},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def wait_while_running(process: "subprocess.Popen[str]", condition: Callable[[], object]) -> None:
    def holds() -> bool:
        assert process.poll() is None, process.communicate()
        return bool(condition())

    wait_for(holds, timeout=240)


def records(out: Path, number: int) -> list[int]:
    path = out / f"trials/{number:04d}/metrics.jsonl"
    return [json.loads(line)["update"] for line in path.read_text().splitlines()] if path.is_file() else []


@pytest.mark.slow
def test_interrupted_and_killed_no_trial_is_lost_or_doubled(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out, base = tmp_path / "sweep", write_base(tmp_path / "base")
    interrupted = command(*FLAGS, "--out", str(out), "--base", str(base), *SPACE)
    wait_while_running(interrupted, lambda: records(out, 0))
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does: to every process
    _, errors = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, errors
    assert re.search(rf"stopped; nothing is lost; continue with: python -m tune.sweep --resume {out}", errors)
    before = states(out)
    assert TrialState.RUNNING in before.values()

    killed = command("--resume", str(out))
    wait_while_running(killed, lambda: any(state.is_finished() for state in states(out).values()))
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()

    last = command("--resume", str(out))
    printed, errors = last.communicate(timeout=400)
    assert last.returncode == 0, errors
    ended = states(out)
    assert ended.keys() >= before.keys() and len(ended) == TRIALS
    assert all(state.is_finished() and state != TrialState.FAIL for state in ended.values()), ended
    for number, state in ended.items():
        updates = records(out, number)
        assert updates == list(range(1, len(updates) + 1)), "no update lost or doubled"
        assert len(updates) == 6 or state == TrialState.PRUNED
    assert "held-out: 8 samples" in printed and "preset" in printed
    assert refuse(sweep.main, ["--resume", str(out), "--truncation", "1"], capsys).endswith(
        "--truncation cannot be given with it"
    )

    report.main([str(out), "--export", "best", "--out", str(tmp_path / "best")])
    assert all((out / name).stat().st_size > 1000 for name in ("report.html", "frontier.png", "parallel.png"))
    assert "<script" not in (out / "report.html").read_text()
    load_settings(tmp_path / "best/config.json")
    generate.main(["--checkpoint", str(tmp_path / "best"), "--num-samples", "2", "--out", str(tmp_path / "made.h5")])
    with h5py.File(tmp_path / "made.h5") as file:
        assert file["tuned/fields"].shape[0] == 2
    assert "not a finished trial" in refuse(report.main, [str(out), "--export", "99", "--out", str(tmp_path / "x")], capsys)
    assert "nothing is ever overwritten" in refuse(
        report.main, [str(out), "--export", "0", "--out", str(tmp_path / "best")], capsys
    )


@pytest.mark.slow
def test_distributed_trials_at_once_find_room_in_their_placement_groups(tmp_path: Path) -> None:
    """Each of two trials takes .76 of 2 CPUs. With actors outside its group it would take 1.26, and both would wait for ever."""
    out, base = tmp_path / "sweep", write_base(tmp_path / "base")
    flags = [*FLAGS[:2], "--num-trials", "2", "--samples", "8", "--real", "16", "--test", "0", "--mode", "distributed"]
    process = command(*flags, "--out", str(out), "--base", str(base), *SPACE)
    printed, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    if len(os.sched_getaffinity(0)) == 2:
        assert "2 trials to do, 2 at once, distributed" in printed
    assert set(states(out).values()) <= {TrialState.COMPLETE, TrialState.PRUNED} and len(states(out)) == 2, printed
    assert records(out, 0) == list(range(1, 7))


FULL_DISK = """
import errno, os
from pathlib import Path
from pirf_ray.learning.objectives import register
from pirf_ray.learning.objectives.pathwise import Pathwise

@register("full")
class Full(Pathwise):
    "The pathwise objective, on a disk that is full at update 3."
    def loss(self, batch, policies, reward):
        if batch.key[1] == 3 and Path(__file__).with_name("disk_is_full").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "somewhere")
        return super().loss(batch, policies, reward)
"""


@pytest.mark.slow
def test_a_full_disk_ends_the_sweep_not_its_trials(tmp_path: Path) -> None:
    """No trial fails for it: with room again, both continue to their end."""
    (tmp_path / "full_disk.py").write_text(FULL_DISK)
    (tmp_path / "disk_is_full").touch()
    out, base = tmp_path / "sweep", write_base(tmp_path / "base")
    flags = [*FLAGS[:2], "--num-trials", "2", *FLAGS[4:6], "--real", "16", "--test", "0", "--trial-cpus", "0.5", "--no-asha"]
    environment = {"PIRF_RAY_PDES": "full_disk", "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    space = [*SPACE, "objective", "full_disk:full"]
    full = command(*flags, "--out", str(out), "--base", str(base), *space, **environment)
    _, errors = full.communicate(timeout=300)
    assert full.returncode == 1, errors
    assert errors.strip().splitlines()[-1].startswith("error: [Errno 28] No space left on device: 'somewhere'; nothing is lost")
    begun = states(out)
    assert 1 <= len(begun) <= 2 and set(begun.values()) == {TrialState.RUNNING}
    (tmp_path / "disk_is_full").unlink()
    mended = command("--resume", str(out), **environment)
    printed, errors = mended.communicate(timeout=300)
    assert mended.returncode == 0, errors
    assert states(out) == {0: TrialState.COMPLETE, 1: TrialState.COMPLETE}, printed
    assert records(out, 0) == records(out, 1) == list(range(1, 7))
