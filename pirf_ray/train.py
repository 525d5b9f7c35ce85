"""``python -m pirf_ray.train --env Burgers-v0``: fine-tune a base model by reward, distributed over Ray."""

import logging
import time

import torch
from rich.console import Console

from pirf_ray.cli.devices import best_device
from pirf_ray.cli.errors import run_command
from pirf_ray.cli.listing import listing
from pirf_ray.cli.live_line import LiveLine
from pirf_ray.cli.progress import print_table, progress_bar
from pirf_ray.cli.runs import TrainArguments, open_run, parse_train, resume_command
from pirf_ray.evaluation.models import evaluate_run
from pirf_ray.evaluation.tables import TABLE_WIDTH, result_table
from pirf_ray.training.outcome import Outcome
from pirf_ray.training.runs import RunDirectory

STARTED = time.perf_counter()


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    parsed = parse_train(argv)
    if parsed.arguments.list is not None:
        print("\n".join(listing(parsed.arguments.list)))
        return
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    run = open_run(parsed)
    with run.locked():
        go(run, parsed.arguments)


def go(run: RunDirectory, arguments: TrainArguments) -> None:
    """Train, evaluate, and print where everything is."""
    console, device = Console(), best_device()
    console.print(f"run directory: {run.paths.root}", soft_wrap=True)
    outcome = train(run, arguments, console)
    torch.set_num_threads(run.config.learner.workers * run.config.learner.worker_threads)
    evaluation = evaluate_run(run, outcome, data=arguments.data, progress=progress_bar("evaluating"), device=device)
    print_table(result_table(evaluation.result), TABLE_WIDTH)
    console.print(outcome.sentence(run.config.optimizer.updates))
    console.print(f"report: {run.paths.report}", soft_wrap=True)
    console.print(f"{time.perf_counter() - STARTED:.0f} s in all")


def train(run: RunDirectory, arguments: TrainArguments, console: Console) -> Outcome:
    """Fine-tune on Ray to the end; KeyboardInterrupt says how to continue."""
    from pirf_ray.distributed import cluster, driver  # Ray takes seconds to import, and bad input must be told before

    with LiveLine(run, console) as line:
        try:
            cluster.connect(run.config, arguments.address)
            driver.run_distributed(run, line.refresh)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped with a checkpoint; continue with: {resume_command(run)}") from None
    return run.outcome()


if __name__ == "__main__":
    run_command(main)
