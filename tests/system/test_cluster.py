"""The commands on several nodes: ``--address`` and a directory that all of them see."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kill_matrix
from commands import FLAGS, SPACE, TINY, states
from places import ROOT
from processes import ray_processes
from tiny_models import write_base

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def nodes() -> Iterator[kill_matrix.Nodes]:
    """Three nodes of one CPU; tests may take some away."""
    made = kill_matrix.Nodes()
    yield made
    made.stop()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("model") / "base")


def command(module: str, nodes: kill_matrix.Nodes, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", module, "--address", nodes.cluster.address, *arguments],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def nodes_of(name: str) -> list[int]:
    """The raylet, one a node, of each process of that name on this test's own nodes: others may run beside it."""
    own = ray_processes(os.getpid(), name)
    listed = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    parents = dict(map(int, line.split()) for line in listed.splitlines())
    return [parents[pid] for pid in own if pid in parents]


def test_rollout_actors_are_spread_and_learner_workers_together(nodes: kill_matrix.Nodes, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = [part for name, value in kill_matrix.SETTINGS.items() for part in (f"--{name}", str(value))]
    process = command("pirf_ray.train", nodes, "--out", str(out), "--base", str(base), *flags, "--workers", "2", "--chunk", "2")
    where: dict[str, list[int]] = {"ray::RolloutActor": [], "ray::RayTrainWorker": []}
    while process.poll() is None:
        for name in where:
            where[name] = max(where[name], nodes_of(name), key=len)
        time.sleep(0.1)
    assert process.returncode == 0, process.communicate()[1]
    actors, workers = where.values()
    assert len(actors) == 2 and len(set(actors)) == 2
    assert len(workers) == 2 and len(set(workers)) == 1
    updates = [json.loads(line)["update"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert updates == list(range(1, kill_matrix.UPDATES + 1)) and (out / "report.png").is_file()


def test_a_sweep_and_a_benchmark_use_what_nodes_there_are(nodes: kill_matrix.Nodes, base: Path, tmp_path: Path) -> None:
    nodes.cluster.remove_node(nodes.workers.pop())
    sweep = command("tune.sweep", nodes, *FLAGS, "--out", str(tmp_path / "sweep"), "--base", str(base), *SPACE)
    printed, errors = sweep.communicate(timeout=400)
    assert sweep.returncode == 0, errors
    assert "4 trials to do, 4 at once, in-process" in printed  # half a CPU each, of two nodes with one
    assert len(states(tmp_path / "sweep")) == 4
    flags = ["--preset", "smoke", "--base", str(base), "--env", "Burgers-v0", "--job-cpus", "0.5", *TINY]
    work = ["--methods", "cocogen", "--num-steps", "3", "5", "--seeds", "1", "--repeated-steps", "5"]
    benchmark = command("pirf_ray.benchmark", nodes, "--out", str(tmp_path / "benchmark"), *flags, *work)
    _, errors = benchmark.communicate(timeout=400)
    assert benchmark.returncode == 0, errors
    assert (tmp_path / "benchmark/benchmark.md").is_file()
