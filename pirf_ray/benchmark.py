"""``python -m pirf_ray.benchmark --env Burgers-v0 Darcy-v0``: compare methods of the field on one base model."""

import sys
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from envs.common.files import absolute
from envs.common.registry import choose
from pirf_ray.cli.errors import run_command
from pirf_ray.cli.flags import check_env, flag_value, parse, use_address
from pirf_ray.comparison.directory import BenchmarkDirectory
from pirf_ray.comparison.plan import DEFAULT_PRESET, PLANS, EvaluationGrid, JobSettings, Plan
from pirf_ray.comparison.run import measure, report, select


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Compare methods on the same base model, solver, network evaluations and noise, settings searched by equal trials.

    Distributed over Ray. Finished cells are kept in --out, and the same command continues there. It ends with a report.
    """

    env: tuple[str, ...] = ()
    """PDEs; default: all whose base model ships."""
    methods: tuple[str, ...] = ()
    """Methods; default: all. One of your own: module:name."""
    preset: str = DEFAULT_PRESET
    """smoke (seconds per method), small (two cores) or paper (128x128 on GPUs); sets the defaults of the sizes."""
    out: Path = Path("benchmark")
    """Directory of cells and report; a benchmark that is there is continued."""
    base: tuple[Path, ...] = ()
    """Base models of your own; each says of which PDE it is."""
    report: bool = False
    """Only draw the report of what is finished."""
    address: str | None = None
    """Ray cluster to join (or RAY_ADDRESS); default: start Ray on this machine."""
    grid: EvaluationGrid = field(default_factory=EvaluationGrid)
    jobs: JobSettings = field(default_factory=JobSettings)
    plan: Plan = field(default_factory=Plan)


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    argv = list(sys.argv[1:] if argv is None else argv)
    preset = flag_value(argv, "--preset", DEFAULT_PRESET)
    default = Arguments(preset=preset, plan=choose("preset", preset, PLANS)())
    a = parse(Arguments, argv=argv, prog="python -m pirf_ray.benchmark", description=Arguments.__doc__, default=default)
    envs = [check_env(name) for name in a.env]
    selection = select(envs=envs, bases=a.base, methods=a.methods, resolution=a.plan.resolution, grid=a.grid)
    directory = BenchmarkDirectory.open(absolute(a.out), a.plan)
    with directory.locked():
        if not a.report:
            measure(directory, selection, jobs=a.jobs, address=use_address(a.address), say=partial(print, flush=True))
        files = report(directory, selection, command=" ".join(["python -m pirf_ray.benchmark", *argv]))
    for name, path in files.items():
        print(f"{name}: {path}")


if __name__ == "__main__":
    run_command(main)
