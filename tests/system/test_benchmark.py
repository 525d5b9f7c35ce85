"""The benchmark command over Ray: killed, interrupted, continued."""

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
from pirf_ray.comparison.cells import Key, read_cell
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


def keys(tmp_path: Path) -> list[Key]:
    return [read_cell(record).key for record in cells(tmp_path)]


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
    kept = keys(tmp_path)
    interrupted = start(tmp_path, base)
    wait_for_cells(tmp_path, len(kept) + 2, interrupted)
    os.killpg(interrupted.pid, signal.SIGINT)  # as a terminal does: to every process
    _, errors = interrupted.communicate(timeout=60)
    assert interrupted.returncode == 130, errors
    assert re.search(r"stopped; \d+ cells are kept in .*, the same command continues", errors)
    last = start(tmp_path, base)
    printed, errors = last.communicate(timeout=300)
    assert last.returncode == 0, errors
    finished = keys(tmp_path)
    assert finished[: len(kept)] == kept
    assert len(set(finished)) == len(finished)
    evaluated = {key[2:] for key in finished if key[0] == "evaluate"}
    repeated = ("base", "cocogen", "pirf-ray-uncorrected", "pirf-ray")
    assert evaluated == {
        *((m, n, 0) for m in (*repeated, "draft-lv") for n in (3, 5)),
        *((m, 5, 1) for m in repeated),
    }
    assert [key for key in finished if key[0] == "tune" and key[2] == "cocogen"] == [
        ("tune", "Burgers-v0", "cocogen", t) for t in (0, 1)
    ]
    benchmark = json.loads((tmp_path / "benchmark/benchmark.json").read_text())
    assert benchmark["missing"] == [] and "page:" in printed
    assert (tmp_path / "benchmark/benchmark.html").stat().st_size > 100_000
