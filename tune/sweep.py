"""``python -m tune.sweep --env Burgers-v0 --num-trials 20``: search what decides a run, with Ray Tune and Optuna."""

import time
from dataclasses import replace
from typing import Any

from rich.console import Console

from pirf_ray.cli import named_env, parse, print_table, run_command, use_address
from pirf_ray.config import LearnerFailed
from pirf_ray.runs import held
from tune.directory import Sweep, created, placed, resumed
from tune.goals import Figures, kept
from tune.settings import Arguments
from tune.studies import SweepStudy, best_first
from tune.trials import TrialJob

TABLE_WIDTH = 150
FIRST_RUNG = 4
"""ASHA stops the worse half of the trials at each rung: first at this part of the updates, then at half of them."""


def main(argv: list[str] | None = None) -> None:
    _, argv = named_env(argv)
    arguments = parse(Arguments, argv=argv, prog="python -m tune.sweep", description=Arguments.__doc__)
    arguments = replace(arguments, address=use_address(arguments.address))
    console = Console()
    sweep = resumed(arguments) if arguments.resume is not None else created(arguments)
    with held(sweep.root, "this sweep"):
        study = sweep.study()
        console.print(f"sweep directory: {sweep.root}\n{sweep.space}", soft_wrap=True, highlight=False)
        if outside := sweep.space.outside():
            console.print(
                f"the first trial is not quite the preset: the space does not hold its {', '.join(outside)}", soft_wrap=True
            )
        search(sweep, study, console)
        conclude(sweep, study, console)


def search(sweep: Sweep, study: SweepStudy, console: Console) -> None:
    """Run what is left of the sweep, on Ray. KeyboardInterrupt, with how to go on, after Ctrl-C."""
    left = sweep.total - len(study.finished())
    if left <= 0:
        console.print(f"all {sweep.total} trials are done; a larger --num-trials goes on", highlight=False)
        return
    from pirf_ray.distributed import driver  # Ray takes seconds to import, and bad input must be told before
    from tune.execution import execute

    driver.join(sweep.arguments.address, dashboard=True)
    placement = placed(sweep, driver.node_resources())
    device = "cuda" if placement.mode == "in-process" and sweep.arguments.trial_gpus else "cpu"
    threads = max(1, int(sweep.arguments.trial_cpus))
    job = TrialJob(trials=sweep.trials, base=sweep.base, mode=placement.mode, threads=threads, device=device)
    console.print(f"{left} trials to do, {placement.at_once} at once, {placement.mode}", highlight=False)
    study.begin()
    log = EventLog(sweep, study, console)
    halted = execute(
        study,
        job,
        placement,
        total=sweep.total,
        asha=asha_rungs(sweep) if sweep.arguments.asha else None,
        on_event=log.note,
        storage=sweep.root,
    )
    again = f"nothing is lost, go on with: python -m tune.sweep --resume {sweep.root}"
    if halted:
        raise LearnerFailed(f"{halted}; {again}")
    if len(study.finished()) < sweep.total:
        raise KeyboardInterrupt(f"stopped; {again}")


def asha_rungs(sweep: Sweep) -> tuple[int, int]:
    """(first rung, last update): a quarter of the updates, but not before the first guard evaluation."""
    spec = sweep.space.specs.get("updates")
    updates = [int(n) for n in spec.ends()] if spec else [sweep.config.optimizer.updates]
    last = max(updates)
    return max(1, last // FIRST_RUNG, min(last, sweep.config.guard.guard_every)), last


class EventLog:
    """A line for each trial that begins or ends."""

    def __init__(self, sweep: Sweep, study: SweepStudy, console: Console) -> None:
        self.sweep, self.study, self.console = sweep, study, console
        self.started = time.monotonic()

    def note(self, number: int, what: str, about: Any) -> None:
        if isinstance(about, Figures):
            inside = "" if kept(about.constraints(self.study.goal, self.study.limits)) else ", outside the limits"
            told = f"residual {about.residual:.4g} ({about.residual / about.base_residual:.3g} x base), "
            told += f"energy distance {about.energy:.4g} ({about.energy_ratio:.3f} x base){inside}"
        elif what == "begins":
            told = ", ".join(
                f"{name} {value:.3g}" if isinstance(value, float) else f"{name} {value}" for name, value in about.items()
            )
        elif isinstance(about, dict):
            told = f"at update {about.get('update')}: others were better by then"
        else:
            told = str(about)
        done = len(self.study.finished())
        minutes = (time.monotonic() - self.started) / 60
        line = f"[{done}/{self.sweep.total}, {minutes:.1f} min] trial {number} {what}: {told}"
        self.console.print(line, soft_wrap=True, highlight=False, markup=False)


def conclude(sweep: Sweep, study: SweepStudy, console: Console) -> None:
    """Name the best trial, and compare it with the preset's on noise and held-out data that no trial has seen."""
    from pirf_ray.evaluation.pages import rich_table  # matplotlib takes seconds to import
    from tune.heldout import compare, heldout_table

    ranked = best_first(study.study)
    if not ranked:
        console.print("no trial was finished: nothing to compare", highlight=False)
        return
    console.print(f"best: trial {ranked[0].number}, in {sweep.run(ranked[0].number)}", soft_wrap=True, highlight=False)
    if sweep.arguments.test:
        print_table(rich_table(heldout_table(compare(sweep, study, samples=sweep.arguments.test))), TABLE_WIDTH)
    console.print(f"python -m tune.report {sweep.root}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    run_command(main)
