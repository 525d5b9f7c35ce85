"""``python -m pirf_ray.train --env Burgers-v0``: fine-tune a base model with PIRF, distributed over Ray."""

import logging
import sys
import time
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

import torch
from rich.console import Console

from envs.pdes import REGISTRY
from pirf_ray.cli import (
    DEFAULT_ENV,
    changed_flags,
    choose,
    flag_value,
    named_env,
    parse,
    print_table,
    progress_bar,
    run_command,
    use_address,
)
from pirf_ray.config import TrainConfig
from pirf_ray.evaluation.figures import TABLE_WIDTH, result_table
from pirf_ray.presets import DEFAULT_PRESET, PRESETS
from pirf_ray.progress import LiveLine
from pirf_ray.runs import RunDirectory, load_settings, refuse_existing
from pirf_ray.training import absolute, check, check_named, evaluate_run, run_training

STARTED = time.perf_counter()


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Fine-tune a diffusion model of physical fields so that what it generates obeys the PDE.

    Without further flags: the shipped base model, Ray on this machine, a few minutes, a run directory with report.png.
    """

    preset: str = DEFAULT_PRESET
    """smoke (seconds), small (minutes on two cores) or paper (128x128 on a GPU); sets the defaults of all other flags."""
    settings: Path | None = None
    """config.json of another run (or of an exported trial), whose settings are the defaults in place of a preset's."""
    out: Path | None = None
    """Run directory to make; default: runs/<env>-<date>-<time>."""
    resume: Path | None = None
    """Continue this run directory instead, with its own settings."""
    base: Path | None = None
    """Base model to fine-tune; default: the one that ships with the package."""
    data: Path | None = None
    """HDF5 file of held-out fields for the final evaluation; default: they are solved."""
    address: str | None = None
    """Ray cluster to join (or RAY_ADDRESS); default: start Ray on this machine."""
    config: TrainConfig = field(default_factory=TrainConfig)


def main(argv: list[str] | None = None) -> None:
    argv = list(sys.argv[1:] if argv is None else argv)
    path = flag_value(argv, "--settings", "")
    settings = load_settings(Path(path)) if path else None
    objective = flag_value(argv, "--objective", "")
    if settings is not None and not objective:
        check_named([settings.pirf.objective], Path(path))
    env, argv = named_env(argv, settings.env if settings else DEFAULT_ENV)
    preset = flag_value(argv, "--preset", DEFAULT_PRESET)
    default = Arguments(preset=preset, config=settings or choose("preset", preset, PRESETS)(env))
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.train", description=Arguments.__doc__, default=default)
    arguments = replace(arguments, address=use_address(arguments.address))
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    run = resumed(arguments, default, objective) if arguments.resume is not None else created(arguments)
    with run.locked():
        go(run, arguments)


def created(arguments: Arguments) -> RunDirectory:
    """A new run directory, everything checked first."""
    config = arguments.config
    if arguments.settings is not None and "--preset" in changed_flags(arguments, Arguments()):
        raise ValueError("--settings stands in place of a preset: --preset cannot be given with it")
    base = check(config, base=arguments.base, data=arguments.data)
    root = absolute(arguments.out or Path("runs") / f"{config.env}-{datetime.now():%Y%m%d-%H%M%S}")
    refuse_existing(root)
    check_resources(arguments)
    return RunDirectory.create(root, config, base)


def resumed(arguments: Arguments, default: Arguments, objective: str) -> RunDirectory:
    """An existing run; ValueError if flags try to change what it is."""
    fixed = (arguments.out, arguments.base, arguments.settings)
    if arguments.resume is None or any(value is not None for value in fixed):
        raise ValueError("--resume continues a run as it is: --out, --base and --settings cannot be given with it")
    run = RunDirectory.open(absolute(arguments.resume))
    check_named([run.config.pirf.objective], run.paths.config, objective)
    asked = [flag for flag in changed_flags(arguments.config, default.config) if flag != "--env"]
    differing = [flag for flag in asked if flag in changed_flags(arguments.config, run.config)]
    if differing:
        raise ValueError(f"--resume continues a run with its own settings; {', '.join(differing)} would change them")
    return run


def check_resources(arguments: Arguments) -> None:
    """Of the cluster, which is joined for it, or of this machine, on which Ray is not yet started."""
    from pirf_ray.distributed import driver  # Ray takes seconds to import, and bad input must be told before

    if arguments.address:
        driver.connect(arguments.config, arguments.address)
    else:
        driver.check_resources(arguments.config, driver.local_resources())


def go(run: RunDirectory, arguments: Arguments) -> None:
    console = Console()
    config = run.config
    torch.set_num_threads(config.learner.worker_threads)
    console.print(f"run directory: {run.paths.root}", soft_wrap=True)
    with LiveLine(run, console) as line:
        try:
            ending = run_training(run, address=arguments.address, on_poll=line.refresh)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped with a checkpoint; go on with: {resume_command(run)}") from None
    evaluation = evaluate_run(run, ending, data=arguments.data, progress=progress_bar("evaluating"))
    print_table(result_table(evaluation.result), TABLE_WIDTH)
    console.print(ending.sentence(config.optimizer.updates))
    console.print(f"report: {run.paths.report}", soft_wrap=True)
    console.print(f"{time.perf_counter() - STARTED:.0f} s in all")


def resume_command(run: RunDirectory) -> str:
    """With the modules of one's own named again."""
    module, objective = REGISTRY[run.config.env].__module__, run.config.pirf.objective
    env = run.config.env if module.startswith("envs.pdes.") else f"{module}:{run.config.env}"
    named = f" --objective {objective}" if ":" in objective else ""
    return f"python -m pirf_ray.train --env {env} --resume {run.paths.root}{named}"


if __name__ == "__main__":
    run_command(main)
