"""The benchmark command over Ray: killed, interrupted, gone on with; and the hacking experiment."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from commands import TINY
from pirf_ray.comparison.cells import key_of
from pirf_ray.diffusion.checkpoints import load_denoiser
from pirf_ray.studies import hacking
from pirf_ray.zoo import find
from places import ROOT
from tiny_models import write_base

WORK = ["--methods", "cocogen", "draft-lv", "pirf-ray", "--num-steps", "3", "5", "--seeds", "2", "--repeated-steps", "5"]


def start(tmp_path: Path, base: Path) -> "subprocess.Popen[str]":
    out = ["--out", str(tmp_path / "benchmark"), "--job-cpus", "0.5"]
    command = [sys.executable, "-m", "pirf_ray.benchmark", "--preset", "smoke", "--base", str(base), "--env", "Burgers-v0"]
    return subprocess.Popen(
        [*command, *out, *TINY, *WORK],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


def cells(tmp_path: Path) -> list[dict]:
    path = tmp_path / "benchmark/cells.jsonl"
    if not path.is_file():
        return []
    data = path.read_text()
    return [json.loads(line) for line in data[: data.rfind("\n") + 1].splitlines()]


def wait_for_cells(tmp_path: Path, count: int, process: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 120
    while len(cells(tmp_path)) < count:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_killed_and_interrupted_it_goes_on_and_measures_everything_once(tmp_path: Path) -> None:
    base = write_base(tmp_path / "base")
    killed = start(tmp_path, base)
    wait_for_cells(tmp_path, 2, killed)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    kept = [key_of(cell) for cell in cells(tmp_path)]
    interrupted = start(tmp_path, base)
    wait_for_cells(tmp_path, len(kept) + 2, interrupted)
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does: to every process
    _, errors = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, errors
    assert re.search(r"stopped; \d+ cells are kept in .*, the same command goes on", errors)
    last = start(tmp_path, base)
    printed, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    keys = [key_of(cell) for cell in cells(tmp_path)]
    assert keys[: len(kept)] == kept
    assert len(set(keys)) == len(keys)
    evaluated = {key[2:] for key in keys if key[0] == "evaluate"}
    repeated = ("base", "cocogen", "pirf-ray-uncorrected", "pirf-ray")
    assert evaluated == {
        *((m, n, 0) for m in (*repeated, "draft-lv") for n in (3, 5)),
        *((m, 5, 1) for m in repeated),
    }
    assert [key for key in keys if key[0] == "tune" and key[2] == "cocogen"] == [
        ("tune", "Burgers-v0", "cocogen", t) for t in (0, 1)
    ]
    benchmark = json.loads((tmp_path / "benchmark/benchmark.json").read_text())
    assert benchmark["missing"] == [] and "page:" in printed
    assert (tmp_path / "benchmark/benchmark.html").stat().st_size > 100_000


def test_an_unguarded_reward_is_kept_to_the_end_and_a_guarded_one_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the tiny base, with steps so large that the first leaves the limits."""
    tiny = load_denoiser(write_base(tmp_path / "base"))
    monkeypatch.setattr(hacking, "RESOLUTION", 8)
    monkeypatch.setattr(hacking, "REAL", 32)
    monkeypatch.setattr("pirf_ray.training.guard.GUARD_REAL", 32)
    monkeypatch.setattr(hacking.zoo, "find", lambda env, resolution: tmp_path / "base")
    out = tmp_path / "out"
    flags = [
        "--updates",
        "4",
        "--learning-rate",
        "0.3",
        "--samples",
        "8",
        "--guard-samples",
        "8",
        "--num-steps",
        "5",
        "--threads",
        "1",
    ]
    hacking.main(["--out", str(out), *flags])
    result = json.loads((out / "hacking.json").read_text())
    assert [h["update"] for h in result["unguarded"]["history"]] == [1, 2, 3, 4]
    assert not any(h["inside"] for h in result["unguarded"]["history"])
    outside = result["unguarded"]["departure"]
    assert outside["energy_ratio"] > 1.05 or abs(outside["amplitude_ratio"] - 1) > 0.02
    assert result["guarded"]["departure"]["amplitude_ratio"] == 1.0  # the base itself is what is left
    assert len(result["guarded"]["history"]) < 4
    assert (out / "hacking.png").stat().st_size > 30_000
    assert "unguarded" in capsys.readouterr().out
    assert tiny[0].resolution == 8
    with pytest.raises(FileExistsError, match="never overwritten"):
        hacking.main(["--out", str(out)])
    with pytest.raises(ValueError, match="--updates and --threads must be at least 1"):
        hacking.main(["--out", str(tmp_path / "other"), "--updates", "0"])


def test_the_experiment_compares_like_with_like() -> None:
    ways = hacking.configs(hacking.Arguments(out=Path("x")))
    assert ways["unguarded"].with_settings(guard="enforce") == ways["guarded"]
    assert {w.optimizer.updates for w in ways.values()} == {60}
    assert ways["default"].pirf.scope == "tail" and ways["default"].guard.guard == "enforce"
    assert find("Burgers-v0", 32).is_dir()
