"""``python -m pirf_ray.studies.throughput``: seconds of waiting, learning and weight sync per update, by source of prefixes.

It compares the plain loop in one process with rollout actors at the same settings: in the exact mode (M=1, S=0), overlapped
(M=1, S=1), with each prefix reused (M=4, S=7), and with the pool.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from envs.common.checks import at_least, not_negative
from envs.common.files import absolute
from pirf_ray import zoo
from pirf_ray.cli.errors import run_command
from pirf_ray.cli.flags import parse
from pirf_ray.cli.progress import print_table
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.learning.communicator import SingleProcess
from pirf_ray.training.finetuning import FineTuning, local_tuning
from pirf_ray.training.presets import small
from pirf_ray.training.settings import TrainConfig

ONE_PROCESS = "one process"
TABLE_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure samples/s of the fine-tuning loop, with and without rollout actors."""

    env: str = "Burgers-v0"
    """The PDE; its shipped base model is used."""
    updates: int = 12
    """Updates timed for each source of prefixes, after warm-up updates."""
    warmup: int = 4
    """Updates before the timing starts: actors start up and fill their queues."""
    actors: int = 2
    """Rollout actors."""

    def __post_init__(self) -> None:
        at_least(self, 1, "updates", "actors")
        not_negative(self, "warmup")


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Mean seconds per update of its parts, and samples per second."""

    wait: float
    learn: float
    sync: float
    samples_per_second: float


def settings(arguments: Arguments) -> dict[str, TrainConfig]:
    """Return the settings by source of prefixes: the same ones, scope ``all``, but for how prefixes are made."""
    base = small(arguments.env).with_settings(actors=arguments.actors, truncation=2, guard_samples=2)
    exact = base.with_settings(scope="all", strategy="fresh", reuse=1, staleness=0)
    return {
        ONE_PROCESS: exact,
        "actors, exact (M=1, S=0)": exact,
        "actors, overlapped (M=1, S=1)": exact.with_settings(staleness=1),
        "actors, reused (M=4, S=7)": exact.with_settings(reuse=4, staleness=7),
        "actors, pool (scope tail)": base.with_settings(scope="tail"),
    }


def measure(tuning: FineTuning, *, updates: int, warmup: int) -> Throughput:
    """Return the throughput over ``updates`` updates, after some that are not timed."""
    for _ in range(warmup):
        tuning.step()
    timings = [record.timing for _ in range(updates) if (record := tuning.step())]
    wait, learn, sync = (sum(seconds) / updates for seconds in zip(*((t.wait, t.learn, t.sync) for t in timings), strict=True))
    samples_per_second = tuning.config.optimizer.batch / (wait + learn + sync)
    return Throughput(wait=wait, learn=learn, sync=sync, samples_per_second=samples_per_second)


def measure_actors(config: TrainConfig, info: ModelInfo, base: Denoiser, path: Path, arguments: Arguments) -> Throughput:
    """Return the throughput with rollout actors. ``path``: checkpoint of the base model."""
    from pirf_ray.distributed import cluster  # Ray takes seconds to import
    from pirf_ray.distributed.driver import start_actors, stop_actors, wait_until_up
    from pirf_ray.distributed.source import ActorSource

    cluster.connect(config, None)
    actors = start_actors(config, path, info.parameters)
    wait_until_up(actors)
    source = ActorSource(config.plan(), actors, fixed=config.fixed_rollouts, staleness=config.rollout.staleness)
    device = torch.device("cpu")
    tuning = FineTuning(config, info, base, source=source, communicator=SingleProcess(), device=device)
    measured = measure(tuning, updates=arguments.updates, warmup=arguments.warmup)
    stop_actors(actors)
    return measured


def main(argv: list[str] | None = None) -> None:
    """Run the study."""
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.studies.throughput", description=Arguments.__doc__)
    path = absolute(zoo.find(arguments.env, small(arguments.env).resolution))
    info, base = checkpoints.load_denoiser(path)
    measured = {}
    for name, config in settings(arguments).items():
        torch.set_num_threads(config.learner.worker_threads)
        if name == ONE_PROCESS:
            tuning = local_tuning(config, info, base)
            measured[name] = measure(tuning, updates=arguments.updates, warmup=arguments.warmup)
        else:
            measured[name] = measure_actors(config, info, base, path, arguments)
    print_table(table(measured), TABLE_WIDTH)


def table(measured: Mapping[str, Throughput]) -> Table:
    """Return a row per source of prefixes; the ratio is to the single process."""
    made = Table(title="Fine-tuning throughput: seconds per update")
    for column in ("prefixes from", "wait", "learn", "sync", "samples/s", "ratio"):
        made.add_column(column, justify="left" if column == "prefixes from" else "right")
    reference = next(iter(measured.values())).samples_per_second
    for name, t in measured.items():
        parts = [f"{seconds:.3f}" for seconds in (t.wait, t.learn, t.sync)]
        made.add_row(name, *parts, f"{t.samples_per_second:.2f}", f"{t.samples_per_second / reference:.2f}")
    return made


if __name__ == "__main__":
    run_command(main)
