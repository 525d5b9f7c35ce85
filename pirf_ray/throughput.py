"""How much of an update is waiting, learning and weight sync: three ways of making prefixes, in one run.

``python -m pirf_ray.throughput`` prints samples/s of the plain single-process loop, of the same settings with rollout
actors in the exact mode (M=1, S=0), and with each prefix reused (M=4, S=7) and of the pool.
"""

from dataclasses import dataclass, replace

import torch
from rich.table import Table

from pirf_ray import checkpoints, zoo
from pirf_ray.checkpoints import ModelInfo
from pirf_ray.cli import parse, print_table, run_command
from pirf_ray.communication import SingleProcess
from pirf_ray.config import TrainConfig
from pirf_ray.denoiser import Denoiser
from pirf_ray.finetuning import FineTuning
from pirf_ray.learner import make_policy
from pirf_ray.presets import small
from pirf_ray.sources import LocalSource, PrefixSource
from pirf_ray.training import absolute


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure samples/s of the fine-tuning loop, with and without rollout actors."""

    env: str = "Burgers-v0"
    """The PDE; its shipped base model is used."""
    updates: int = 12
    """Updates timed for each way, after warm-up updates."""
    warmup: int = 4
    """Updates before the timing starts: actors start up and fill their queues."""
    actors: int = 2
    """Rollout actors."""


def settings(arguments: Arguments) -> dict[str, TrainConfig]:
    """The ways compared: one set of settings, scope all, but for how prefixes are made."""
    base = small(arguments.env)
    pirf = replace(base.pirf, scope="all", truncation=2)
    exact = replace(base.rollout, strategy="fresh", reuse=1, staleness=0, actors=arguments.actors)
    guard = replace(base.guard, guard_samples=2)
    config = replace(base, pirf=pirf, rollout=exact, guard=guard)
    return {
        "one process": config,
        "actors, exact (M=1, S=0)": config,
        "actors, overlapped (M=1, S=1)": replace(config, rollout=replace(exact, staleness=1)),
        "actors, reused (M=4, S=7)": replace(config, rollout=replace(exact, reuse=4, staleness=7)),
        "actors, pool (scope tail)": replace(
            config, pirf=replace(pirf, scope="tail"), rollout=replace(base.rollout, actors=arguments.actors)
        ),
    }


def measure(config: TrainConfig, info: ModelInfo, base: Denoiser, source: PrefixSource, arguments: Arguments) -> dict[str, float]:
    """Seconds an update by part, and samples/s, over ``updates`` updates."""
    tuning = FineTuning(config, info, base, source=source, communicator=SingleProcess(), device=torch.device("cpu"))
    for _ in range(arguments.warmup):
        tuning.step()
    records = [tuning.step() for _ in range(arguments.updates)]
    parts = {name: sum(r[f"timing/{name}"] for r in records) / len(records) for name in ("wait", "learn", "sync")}
    return {**parts, "samples_per_second": config.optimizer.batch / sum(parts.values())}


def main(argv: list[str] | None = None) -> None:
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.throughput", description=Arguments.__doc__)
    path = zoo.find(arguments.env, small(arguments.env).resolution)
    info, base = checkpoints.load_denoiser(path)
    figures = {}
    from pirf_ray.distributed import driver  # Ray takes seconds to import: after the checks
    from pirf_ray.distributed.actors import start_actors, stop_actors, wait_until_up
    from pirf_ray.distributed.source import ActorSource

    for name, config in settings(arguments).items():
        torch.set_num_threads(config.learner.worker_threads)
        if name == "one process":
            figures[name] = measure(config, info, base, LocalSource(config, make_policy(config, base)), arguments)
            continue
        driver.connect(config, None)
        actors = start_actors(config, absolute(path))
        wait_until_up(actors)
        figures[name] = measure(config, info, base, ActorSource(config, actors), arguments)
        stop_actors(actors)
    print_table(table(figures), 100)


def table(figures: dict[str, dict[str, float]]) -> Table:
    """One row a way; the ratio is to the single process."""
    result = Table(title="Fine-tuning throughput: seconds an update")
    for column in ("prefixes from", "wait", "learn", "sync", "samples/s", "ratio"):
        result.add_column(column, justify="left" if column == "prefixes from" else "right")
    reference = next(iter(figures.values()))["samples_per_second"]
    for name, f in figures.items():
        speed = f["samples_per_second"]
        cells = [f"{f[part]:.3f}" for part in ("wait", "learn", "sync")]
        result.add_row(name, *cells, f"{speed:.2f}", f"{speed / reference:.2f}")
    return result


if __name__ == "__main__":
    run_command(main)
