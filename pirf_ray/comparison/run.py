"""A whole benchmark: what is compared, every job that is still to do on Ray, and the report."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from envs.common.checks import ConfigError
from envs.common.files import absolute
from envs.pdes import PDE, REGISTRY
from envs.pdes.base import require
from pirf_ray import zoo
from pirf_ray.comparison.chains import ChainMaker, count_jobs, failures, samples_of
from pirf_ray.comparison.directory import BenchmarkDirectory
from pirf_ray.comparison.jobs import Job, run_job
from pirf_ray.comparison.plan import EvaluationGrid, JobSettings
from pirf_ray.comparison.summaries import Header
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError
from pirf_ray.methods import METHODS, find_method

NEEDED = ("solve", "operators", "resolve_error")
"""Parts of a PDE that every row of the benchmark needs."""
LIBRARIES = ("pirf_ray", "torch", "ray", "optuna", "gymnasium", "numpy")
Say = Callable[[str], None]
"""Prints a line for the user."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is compared."""

    bases: dict[str, Path]
    """Base model of each PDE."""
    methods: list[str]
    """Methods, with the base model and every method whose samples another one finishes."""
    grid: EvaluationGrid
    """N and seeds."""


def select(
    *, envs: Sequence[str], bases: Sequence[Path], methods: Sequence[str], resolution: int, grid: EvaluationGrid
) -> Selection:
    """Return what is compared, everything checked before anything is started. The error names the flag.

    ``envs``: registered ids; empty: all whose base model ships or is given in ``bases``. ``methods``: empty: all rows of the benchmark.
    """
    asked = list(methods or (name for name, recipe in METHODS.items() if recipe.in_benchmark))
    own = {checkpoints.load_meta(path)[0].env_id: absolute(path) for path in bases}
    chosen = list(envs) or sorted({env for env, n in zoo.shipped() if n == resolution} | own.keys())
    if not chosen:
        raise ConfigError(f"no base model ships at {resolution}x{resolution}: give your own with --base")
    found = {env: own.get(env) or absolute(zoo.find(env, resolution)) for env in chosen}
    for env, path in found.items():
        info, meta = checkpoints.load_meta(path)
        if meta.get("kind") != "base" or info.resolution != resolution or info.env_id not in REGISTRY:
            raise CheckpointError(f"--base {path}: expected a base model of {env} at {resolution}x{resolution}")
        _check_parts(info.pde())
    for name in (*asked, *grid.repeated):
        find_method(name)
    needed = ["base", *filter(None, map(samples_of, asked))]  # what is compared with, and what is finished
    return Selection(bases=found, methods=[*(m for m in dict.fromkeys(needed) if m not in asked), *asked], grid=grid)


def _check_parts(pde: PDE) -> None:
    """Raise NotProvided if the PDE leaves out a part that the benchmark needs."""
    for name in NEEDED:
        require(pde, name, "the benchmark", "leave this PDE out: --env")


def measure(directory: BenchmarkDirectory, selection: Selection, *, jobs: JobSettings, address: str | None, say: Say) -> None:
    """Run every job that is still to do, on Ray. ``address``: cluster to join; None: Ray is started here."""
    bases, methods = selection.bases, selection.methods
    pairs = [(env, method) for env in bases for method in methods if not samples_of(method)]
    maker = ChainMaker(directory, selection.grid, methods, device=jobs.device)
    todo = count_jobs(maker, pairs, [m for m in methods if find_method(m).search])
    say(f"{directory.root}: {len(directory.cells())} cells are finished, {todo} jobs to do")
    if not todo:
        return
    from pirf_ray.distributed import cluster  # Ray takes seconds to import, and bad input must be told before
    from pirf_ray.distributed.tasks import room, run_chains

    if not address:
        room(jobs.job_cpus, jobs.job_gpus, cluster.local_resources())
    cluster.join(address)
    progress = JobProgress(say, todo)
    try:
        run_chains(
            (maker.chain(env, method, bases[env]) for env, method in pairs),
            run_job,
            cpus=jobs.job_cpus,
            gpus=jobs.job_gpus,
            on_start=progress.started,
            on_done=progress.done,
        )
    except KeyboardInterrupt:
        kept = len(directory.cells())
        raise KeyboardInterrupt(f"stopped; {kept} cells are kept in {directory.root}, the same command continues") from None
    for line in failures(directory.cells()):
        say(f"failed: {line}")


class JobProgress:
    """A line for each finished job: its name, its seconds, how many jobs are left and about how long they take."""

    def __init__(self, say: Say, total: int) -> None:
        self.say, self.total, self.finished = say, total, 0
        self.begun = time.monotonic()
        self._started: dict[int, float] = {}

    def started(self, job: Job) -> None:
        """Take note of a job that begins."""
        self._started[id(job)] = time.monotonic()

    def done(self, job: Job) -> None:
        """Print the line of a finished job."""
        now = time.monotonic()
        self.finished += 1
        left = (now - self.begun) / self.finished * max(0, self.total - self.finished) / 60
        seconds = now - self._started.pop(id(job))
        self.say(f"[{self.finished}/{self.total}] {job.described()}: {seconds:.1f} s | about {left:.0f} min left")


def report(directory: BenchmarkDirectory, selection: Selection, *, command: str) -> dict[str, Path]:
    """Write the report of what is finished; return its files by what they are. ``command``: recorded in it."""
    from pirf_ray.comparison.report import write_report  # matplotlib takes seconds to import

    bases, methods = selection.bases, selection.methods
    samples: dict[tuple[str, str], np.ndarray] = {}
    for env in bases:
        samples |= directory.samples(env, methods)
    cells = [cell for cell in directory.cells() if cell.env in bases and cell.method in methods]
    return write_report(directory.root, cells, make_header(directory, selection, command), samples)


def make_header(directory: BenchmarkDirectory, selection: Selection, command: str) -> Header:
    """Return how the benchmark was made, and what it announces."""
    grid, methods = selection.grid, selection.methods
    return Header(
        command=command,
        date=f"{date.today():%Y-%m-%d}",
        machine=machine(),
        versions={name: version(name) for name in LIBRARIES},
        plan=directory.plan,
        envs=list(selection.bases),
        methods=methods,
        num_steps=list(grid.steps_of(0)),
        parameters={env: checkpoints.load_meta(path)[0].parameters for env, path in selection.bases.items()},
        seeds={method: len(grid.seeds_of(samples_of(method) or method)) for method in methods},
    )


def machine() -> str:
    """Return the number of CPU cores, and the GPUs if there are any."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([f"{len(os.sched_getaffinity(0))} CPU cores", *gpus])
