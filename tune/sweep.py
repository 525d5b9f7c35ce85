"""``python -m tune.sweep --env Burgers-v0 --num-trials 20``: search the settings of fine-tuning with Ray Tune and Optuna."""

from dataclasses import replace

from rich.console import Console

from envs.common.files import locked
from pirf_ray.cli.devices import best_device
from pirf_ray.cli.errors import run_command
from pirf_ray.cli.flags import named_env, parse, use_address
from pirf_ray.cli.progress import print_table
from tune.directory import Sweep, created, resumed
from tune.searching import search
from tune.settings import Arguments
from tune.studies import SweepStudy

TABLE_WIDTH = 150


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    _, argv = named_env(argv)
    arguments = parse(Arguments, argv=argv, prog="python -m tune.sweep", description=Arguments.__doc__)
    arguments = replace(arguments, address=use_address(arguments.address))
    sweep = resumed(arguments) if arguments.resume is not None else created(arguments)
    console = Console()
    with locked(sweep.root, "this sweep"):
        study = sweep.study()
        console.print(f"sweep directory: {sweep.root}\n{sweep.space}", soft_wrap=True, highlight=False)
        if outside := sweep.space.outside():
            names = ", ".join(outside)
            console.print(f"the first trial differs from the preset: the space does not hold its {names}", soft_wrap=True)
        search(sweep, study, console)
        conclude(sweep, study, console)


def conclude(sweep: Sweep, study: SweepStudy, console: Console) -> None:
    """Print the best trial, and its comparison with the preset on noise and held-out data that no trial has seen."""
    from pirf_ray.evaluation.pages import rich_table  # matplotlib takes seconds to import
    from tune.heldout import compare, heldout_table

    ranked = study.ranked()
    if not ranked:
        console.print("no trial was finished: nothing to compare", highlight=False)
        return
    console.print(f"best: trial {ranked[0].number}, in {sweep.run(ranked[0].number)}", soft_wrap=True, highlight=False)
    if sweep.arguments.test:
        comparison = compare(sweep, study, samples=sweep.arguments.test, device=best_device())
        print_table(rich_table(heldout_table(comparison)), TABLE_WIDTH)
    console.print(f"python -m tune.report {sweep.root}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    run_command(main)
