"""``python -m pirf_ray.benchmark --env Burgers-v0 Darcy-v0``: methods of the field on one base model, side by side."""

import os
import sys
import time
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from envs.pdes import REGISTRY
from pirf_ray import checkpoints, zoo
from pirf_ray.benchmarking.cells import Benchmark
from pirf_ray.benchmarking.chains import ChainMaker, Extent, count_jobs, failures, leader
from pirf_ray.benchmarking.jobs import Job, run_job
from pirf_ray.benchmarking.plan import PLANS, Plan
from pirf_ray.checkpoints import CheckpointError
from pirf_ray.cli import check_env, choose, flag_value, parse, run_command, use_address
from pirf_ray.config import ConfigError
from pirf_ray.methods import METHODS, Problem, find_method
from pirf_ray.training import absolute

DEFAULT_PRESET = "small"
REPEATED = ("base", "cocogen", "pirf-freeze", "pirf-ray-uncorrected")
LIBRARIES = ("pirf_ray", "torch", "ray", "optuna", "gymnasium", "numpy")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare methods on the same base model, solver, network evaluations and noise, settings searched by equal trials.

    Distributed over Ray; finished cells are kept in --out, and the same command goes on with it. Ends with a report there.
    """

    env: tuple[str, ...] = ()
    """PDEs; default: all whose base model ships."""
    methods: tuple[str, ...] = ()
    """Methods; default: all. One of your own: module:name."""
    preset: str = DEFAULT_PRESET
    """smoke (seconds a method), small (two cores) or paper (128x128 on GPUs); sets the defaults of the sizes."""
    out: Path = Path("benchmark")
    """Directory of cells and report; one that is there is gone on with."""
    base: tuple[Path, ...] = ()
    """Base models of your own; each says of which PDE it is."""
    num_steps: tuple[int, ...] = (5, 10, 20, 40)
    """N, steps of the sampler, at which methods are evaluated."""
    seeds: int = 3
    """Seeds of training, noise and held-out data for the methods of --repeated."""
    repeated: tuple[str, ...] = REPEATED
    """Methods that get every seed, with those that follow them; the others get the first."""
    repeated_steps: tuple[int, ...] = (10, 20)
    """N at which seeds after the first are evaluated."""
    report: bool = False
    """Only draw the report of what is finished."""
    job_cpus: float = 1.0
    """CPUs that Ray reserves for each job; so many jobs run at once as fit."""
    job_gpus: float = 0.0
    """GPUs that Ray reserves for each job; fractions share one."""
    address: str | None = None
    """Ray cluster to join (or RAY_ADDRESS); default: start Ray on this machine."""
    plan: Plan = field(default_factory=Plan)


def main(argv: list[str] | None = None) -> None:
    preset = flag_value(argv, "--preset", DEFAULT_PRESET)
    default = Arguments(preset=preset, plan=choose("preset", preset, PLANS)())
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.benchmark", description=Arguments.__doc__, default=default)
    bases, methods = check(arguments)
    extent = Extent(
        num_steps=tuple(sorted(set(arguments.num_steps))),
        repeated=arguments.repeated,
        repeated_steps=arguments.repeated_steps,
        seeds=arguments.seeds,
    )
    benchmark = Benchmark.open(absolute(arguments.out), arguments.plan)
    with benchmark.locked():
        if not arguments.report:
            measure(benchmark, extent, bases, methods, arguments)
        write_report(benchmark, bases, methods, extent, argv)


def check(arguments: Arguments) -> tuple[dict[str, Path], list[str]]:
    """Base model of each PDE and the methods, before anything is started. The error names the flag."""
    if not arguments.num_steps or min(arguments.num_steps) < 2:
        raise ConfigError(f"--num-steps must be at least 2 each, got {arguments.num_steps}")
    if arguments.seeds < 1:
        raise ConfigError(f"--seeds must be at least 1, got {arguments.seeds}")
    resolution = arguments.plan.resolution
    own = {checkpoints.load_meta(path)[0].env_id: absolute(path) for path in arguments.base}
    named = [check_env(name) for name in arguments.env]
    envs = named or sorted({env for env, n in zoo.shipped() if n == resolution} | own.keys())
    if not envs:
        raise ConfigError(f"no base model ships at {resolution}x{resolution}: give your own with --base")
    bases = {env: own.get(env) or absolute(zoo.find(env, resolution)) for env in envs}
    for env, path in bases.items():
        info, meta = checkpoints.load_meta(path)
        if meta.get("kind") != "base" or info.resolution != resolution or info.env_id not in REGISTRY:
            raise CheckpointError(f"--base {path}: expected a base model of {env} at {resolution}x{resolution}")
    asked = list(arguments.methods or METHODS)
    for name in (*asked, *arguments.repeated):
        find_method(name)
    needed = ["base", *filter(None, map(leader, asked))]  # what is compared with, and what is followed
    return bases, [*(name for name in dict.fromkeys(needed) if name not in asked), *asked]


def measure(benchmark: Benchmark, extent: Extent, bases: dict[str, Path], methods: list[str], arguments: Arguments) -> None:
    """Run every job that is still to do, on Ray."""
    pairs = [(env, method) for env in bases for method in methods if not leader(method)]
    maker = ChainMaker(benchmark, extent, methods)
    tunable = [m for m in methods if find_method(m).defaults(_problem(next(iter(bases.values())), benchmark.plan))]
    todo = count_jobs(maker, pairs, tunable)
    console = Console()
    console.print(f"{benchmark.root}: {len(benchmark.cells())} cells are finished, {todo} jobs to do", soft_wrap=True)
    if not todo:
        return
    address = use_address(arguments.address)
    from pirf_ray.distributed import driver  # Ray takes seconds to import, and bad input must be told before
    from pirf_ray.distributed.jobs import room, run_chains

    if not address:
        room(arguments.job_cpus, arguments.job_gpus, driver.local_resources())
    driver.join(address)
    progress = Progress(console, todo)
    try:
        run_chains(
            (maker.chain(env, method, bases[env]) for env, method in pairs),
            run_job,
            cpus=arguments.job_cpus,
            gpus=arguments.job_gpus,
            on_start=progress.started,
            on_done=progress.done,
        )
    except KeyboardInterrupt:
        kept = len(benchmark.cells())
        raise KeyboardInterrupt(f"stopped; {kept} cells are kept in {benchmark.root}, the same command goes on") from None
    for line in failures(benchmark.cells()):
        console.print(f"failed: {line}", soft_wrap=True, highlight=False)


def _problem(base: Path, plan: Plan) -> Problem:
    info, denoiser = checkpoints.load_denoiser(base)
    return Problem(info=info, base=denoiser, num_steps=plan.train_steps)


class Progress:
    """A line for each finished job: which, how long it took, how many are left and about how long they take."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.finished = console, total, 0
        self.begun = time.monotonic()
        self._started: dict[int, float] = {}

    def started(self, job: Job) -> None:
        self._started[id(job)] = time.monotonic()

    def done(self, job: Job) -> None:
        now = time.monotonic()
        self.finished += 1
        left = (now - self.begun) / self.finished * max(0, self.total - self.finished) / 60
        seconds = now - self._started.pop(id(job))
        line = f"[{self.finished}/{self.total}] {job.described()}: {seconds:.1f} s | about {left:.0f} min left"
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)


def write_report(
    benchmark: Benchmark, bases: dict[str, Path], methods: list[str], extent: Extent, argv: list[str] | None
) -> None:
    """benchmark.json, benchmark.md, pictures and benchmark.html, of what is finished."""
    from pirf_ray.benchmarking.report import write_report as write  # matplotlib takes seconds to import

    samples: dict[tuple[str, str], Any] = {}
    for env in bases:
        samples |= benchmark.samples(env, methods)
    header = {
        "command": "python -m pirf_ray.benchmark " + " ".join(sys.argv[1:] if argv is None else argv),
        "date": f"{date.today():%Y-%m-%d}",
        "machine": machine(),
        "versions": {name: version(name) for name in LIBRARIES},
        "plan": benchmark.plan.to_json(),
        "envs": list(bases),
        "methods": methods,
        "num_steps": list(extent.num_steps),
        "parameters": {env: checkpoints.load_meta(path)[0].parameters for env, path in bases.items()},
        "seeds": {method: len(extent.seeds_of(leader(method) or method)) for method in methods},
    }
    chosen = [cell for cell in benchmark.cells() if cell["env"] in bases and cell["method"] in methods]
    for name, path in write(benchmark.root, chosen, header, samples).items():
        print(f"{name}: {path}")


def machine() -> str:
    """CPU cores, and GPUs if there are any."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([f"{len(os.sched_getaffinity(0))} CPU cores", *gpus])


if __name__ == "__main__":
    run_command(main)
