"""Kills what a distributed run is made of, at random points, and checks that nothing is lost.

``python tests/support/kill_matrix.py --runs 20``: each run kills one thing (a rollout actor, a learner worker, a node, the driver; or
interrupts the driver) at one place (while starting, updating, saving a checkpoint, near the end), then checks: the run or its
resumption ends, every update is there once with its own batch, the final weights are bit for bit those of the undisturbed run
(the exact mode), and no process, partial file or placement group is left. Prints a line a run, and how many survived and were hit.
"""

import argparse
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice, product
from pathlib import Path

import torch

import pirf_ray.distributed  # noqa: F401  # Ray's switches, before anything imports Ray
from pirf_ray.diffusion.checkpoints import load_weights
from places import ROOT
from tiny_models import write_base

KINDS = ("actor", "worker", "node", "driver", "ctrl-c")
PLACES = ("starting", "updating", "saving", "ending")
UPDATES = 40
SETTINGS = {
    "preset": "smoke",
    "resolution": 8,
    "scope": "all",
    "strategy": "fresh",
    "updates": UPDATES,
    "guard-every": 10,
    "checkpoint-every": 5,
    "guard-amplitude": 100,
    "guard-energy": 100,
    "guard-spectrum": 100,
}
"""Exact mode: each prefix is used once, by the weights that made it."""
TAG = "PIRF_RAY_KILL_MATRIX"
NAMES = {"actor": "ray::RolloutActor", "worker": "ray::RayTrainWorker"}
TIMEOUT = 300.0


@dataclass(frozen=True)
class Verdict:
    kind: str
    place: str
    problems: tuple[str, ...]
    killed: bool
    seconds: float
    resumed: bool

    def __str__(self) -> str:
        what = "survived" if not self.problems else "; ".join(self.problems)
        how = ("" if self.killed else " (nothing was left to kill)") + (", resumed" if self.resumed else "")
        return f"{self.kind:7} {self.place:9} {what}{how}, {self.seconds:.0f} s"


class Run:
    """A run of ``train`` in a process of its own, whose descendants carry a tag."""

    def __init__(self, out: Path, base: Path, tag: str, address: str | None) -> None:
        self.out, self.base, self.tag, self.address = out, base, tag, address

    def start(self) -> "subprocess.Popen[str]":
        flags = [part for name, value in SETTINGS.items() for part in (f"--{name}", str(value))]
        begun = (self.out / "config.json").is_file()
        own = ["--resume", str(self.out)] if begun else ["--out", str(self.out), "--base", str(self.base), *flags]
        where = ["--address", self.address] if self.address else []
        return subprocess.Popen(
            [sys.executable, "-m", "pirf_ray.train", "--env", "Burgers-v0", *own, *where],
            cwd=ROOT,
            env={**os.environ, TAG: self.tag, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def updates(self) -> list[int]:
        return [record["update"] for record in self.records()]

    def records(self) -> list[dict]:
        path = self.out / "metrics.jsonl"
        text = path.read_text() if path.is_file() else ""
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def weights(self) -> dict[str, torch.Tensor]:
        return load_weights(self.out / f"checkpoints/update_{UPDATES:06d}", "model")


def tagged(tag: str, name: str = "") -> list[int]:
    """Living processes that carry the tag and whose command line holds the name."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment, line = (entry / "environ").read_bytes(), (entry / "cmdline").read_bytes()
        except (FileNotFoundError, PermissionError, ProcessLookupError):
            continue
        if f"{TAG}={tag}".encode() in environment and name.encode() in line:
            found.append(int(entry.name))
    return found


def reach(run: Run, process: "subprocess.Popen[str]", kind: str, place: str, rng: random.Random) -> None:
    """Wait until the run is at the place, and there is what is to be killed; or until it has ended."""
    at = {"starting": 0, "updating": rng.randrange(1, UPDATES - 5), "ending": UPDATES - 2}.get(place, 0)
    saved = rng.randrange(1, UPDATES // SETTINGS["checkpoint-every"])
    deadline = time.monotonic() + TIMEOUT

    def there() -> bool:
        if place == "starting":
            return bool((run.out / "base").is_dir() if kind == "node" else tagged(run.tag, NAMES.get(kind, NAMES["actor"])))
        if place == "saving":  # at once after one appeared: while the next update or the deletion of the oldest one runs
            return (run.out / f"checkpoints/update_{saved * SETTINGS['checkpoint-every']:06d}").exists()
        return len(run.updates()) > at

    while process.poll() is None and not there():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{place} was not reached")
        time.sleep(0.002)
    if place == "starting":
        time.sleep(rng.uniform(0, 8))


def strike(run: Run, process: "subprocess.Popen[str]", kind: str, nodes: "Nodes | None", rng: random.Random) -> bool:
    """Kill it; False if there is nothing (left) to kill."""
    if process.poll() is not None:
        return False
    if kind == "ctrl-c":
        os.killpg(process.pid, signal.SIGINT)
    elif kind == "driver":
        os.kill(process.pid, signal.SIGKILL)
    elif kind == "node":
        assert nodes is not None
        nodes.kill(rng)
    else:
        victims = tagged(run.tag, NAMES[kind])
        if not victims:
            return False
        os.kill(rng.choice(victims), signal.SIGKILL)
    return True


class Nodes:
    """A cluster of three nodes on this machine, for kills of whole nodes."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        seen = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}
        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": seen})
        self.workers = [self.cluster.add_node(num_cpus=1) for _ in range(2)]

    def kill(self, rng: random.Random) -> None:
        node = rng.choice(self.workers)
        self.workers.remove(node)
        self.cluster.remove_node(node, allow_graceful=False)

    def leftovers(self) -> list[str]:
        """Placement groups that are still reserved."""
        import ray
        from ray.util import placement_group_table

        ray.init(address=self.cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        try:
            deadline = time.monotonic() + 30
            while True:
                held = [group for group in placement_group_table().values() if group["state"] not in ("REMOVED",)]
                if not held or time.monotonic() > deadline:
                    return [f"placement group {group['name'] or group['placement_group_id']}" for group in held]
                time.sleep(0.5)
        finally:
            ray.shutdown()

    def stop(self) -> None:
        self.cluster.shutdown()


@contextmanager
def cluster_for(kind: str) -> Iterator[Nodes | None]:
    nodes = Nodes() if kind == "node" else None
    try:
        yield nodes
    finally:
        if nodes:
            nodes.stop()


def disturbed(kind: str, place: str, reference: Run, directory: Path, seed: int) -> Verdict:
    """One run with one kill, resumed until it ends, and what is wrong with it then."""
    rng, began = random.Random(seed), time.monotonic()
    with cluster_for(kind) as nodes:
        run = Run(
            directory / f"{seed}-{kind}-{place}", reference.base, uuid.uuid4().hex, nodes.cluster.address if nodes else None
        )
        process = run.start()
        reach(run, process, kind, place, rng)
        killed = strike(run, process, kind, nodes, rng)
        _, errors = process.communicate(timeout=TIMEOUT)
        code, resumed = process.returncode, False
        problems = ending_problems(kind, place, code, errors) if killed else []
        if code != 0:
            resumed = True
            process = run.start()
            _, errors = process.communicate(timeout=TIMEOUT)
            if process.returncode:
                problems.append(
                    f"its resumption failed: {errors.strip().splitlines()[-1] if errors.strip() else process.returncode}"
                )
        problems += check(run, reference)
        if nodes:
            problems += nodes.leftovers()
        problems += orphans(run)
    return Verdict(kind, place, tuple(problems), killed, time.monotonic() - began, resumed)


def ending_problems(kind: str, place: str, code: int, errors: str) -> list[str]:
    """What is wrong with how the disturbed process itself ended. Only a driver's own end may end it."""
    allowed = {"driver": (-signal.SIGKILL,), "ctrl-c": (0, 128 + signal.SIGINT), "node": (0, 1)}.get(kind, (0,))
    if code not in allowed:
        return [f"ended with {code}: {errors.strip()[-200:]}"]
    if kind == "ctrl-c" and code and place != "starting" and "continue with: python -m pirf_ray.train" not in errors:
        return [f"did not say how to continue: {errors.strip()[-200:]}"]
    return []


def check(run: Run, reference: Run) -> list[str]:
    problems = []
    if run.updates() != list(range(1, UPDATES + 1)):
        problems.append(f"metrics have updates {run.updates()}")
    ids = [[record["rollout/sample_ids"] for record in each.records()] for each in (run, reference)]
    if ids[0] != ids[1]:
        problems.append("a batch was counted twice or not at all")
    try:
        mine, theirs = run.weights(), reference.weights()
        if mine.keys() != theirs.keys() or not all(torch.equal(mine[name], theirs[name]) for name in theirs):
            problems.append("the final weights differ")
    except (ValueError, FileNotFoundError) as error:
        problems.append(f"no final weights: {error}")
    if not (run.out / "report.png").is_file():
        problems.append("no report")
    partial = [str(path.relative_to(run.out)) for path in run.out.rglob("*.partial*")]
    if partial:
        problems.append(f"left behind: {', '.join(partial)}")
    return problems


def orphans(run: Run) -> list[str]:
    """Processes that live on after everything has ended."""
    deadline = time.monotonic() + 60
    while (left := tagged(run.tag)) and time.monotonic() < deadline:
        time.sleep(0.5)
    return [f"process {pid} lives on: {Path(f'/proc/{pid}/cmdline').read_bytes()[:60]!r}" for pid in left]


def undisturbed(directory: Path) -> Run:
    run = Run(directory / "reference", write_base(directory / "base"), uuid.uuid4().hex, None)
    process = run.start()
    _, errors = process.communicate(timeout=TIMEOUT)
    if process.returncode:
        raise RuntimeError(f"the undisturbed run failed: {errors}")
    return run


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=len(KINDS) * len(PLACES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    survived = hit = 0
    with tempfile.TemporaryDirectory() as directory:
        reference = undisturbed(Path(directory))
        matrix = product(PLACES, arguments.kinds)
        for i, (place, kind) in enumerate(islice(cycle(matrix), arguments.runs)):
            verdict = disturbed(kind, place, reference, Path(directory), arguments.seed + i)
            survived += not verdict.problems
            hit += verdict.killed
            print(f"[{i + 1}/{arguments.runs}] {verdict}", flush=True)
    print(f"{survived} of {arguments.runs} survived, {hit} of them hit")
    return 0 if survived == hit == arguments.runs else 1


if __name__ == "__main__":
    sys.exit(main())
