"""``python -m pirf_ray.studies.scaling``: updates/s by number of rollout actors, with the accelerators' time simulated by sleeps.

Actors, queue and weight sync are the real ones; the network's time is a sleep, in the learner too. So it measures everything
around the network, against the ideal min(actors / (chunks per update x chunk seconds), 1 / learn seconds).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.table import Table

from envs.common.checks import at_least, not_negative, positive, require
from envs.common.files import absolute, write_json
from pirf_ray import zoo
from pirf_ray.cli.errors import run_command
from pirf_ray.cli.flags import not_there, parse
from pirf_ray.cli.progress import print_table
from pirf_ray.diffusion import checkpoints
from pirf_ray.distributed.actors import RolloutActor
from pirf_ray.distributed.weights import WeightMessage
from pirf_ray.learning.parameters import layers
from pirf_ray.learning.rollouts.records import Prefix, Rollouts
from pirf_ray.learning.rollouts.sources import RolloutTask
from pirf_ray.training.presets import small
from pirf_ray.training.settings import TrainConfig

TABLE_WIDTH = 100


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure how fine-tuning scales with rollout actors whose network time is simulated by a sleep."""

    env: str = "Burgers-v0"
    """The PDE; sizes of prefixes and weights are its shipped base model's."""
    actors: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of rollout actors."""
    chunks: int = 16
    """Chunks per update."""
    chunk_seconds: float = 0.25
    """Time that an actor's accelerator takes for a chunk."""
    learn_seconds: float = 0.25
    """Time that the learner's accelerator takes for an update."""
    staleness: int = 1
    """S: 1 lets rollouts overlap with learning."""
    levels: int = 1
    """Decoder levels that learn, whose weights are sent after each update (1: the paper's)."""
    updates: int = 12
    """Updates timed for each number of actors."""
    warmup: int = 3
    """Updates before the timing starts."""
    out: Path | None = None
    """JSON file of the metrics; never overwritten."""

    def __post_init__(self) -> None:
        require(min(self.actors, default=0) >= 1, f"--actors must be at least 1 each, got {self.actors}")
        at_least(self, 1, "chunks", "updates")
        not_negative(self, "warmup")
        positive(self, "chunk_seconds", "learn_seconds")


class SleepingActor(RolloutActor):
    """A rollout actor that sleeps for as long as an accelerator would compute.

    It takes and checks real weights, and its prefixes have the real size.
    """

    def __init__(self, task: RolloutTask, base: Path, threads: int, device: str, seconds: float) -> None:
        super().__init__(task, base, threads, device)
        self.seconds = seconds

    def make(self, chunk: int, version: int, message: WeightMessage | None) -> Rollouts:
        """Return zeros in place of the chunk's prefix, after the sleep."""
        self.load(version, message)
        time.sleep(self.seconds)
        task = self.worker.task
        wanted = task.requests(chunk, version)
        x = torch.zeros((len(wanted.sample_ids), *self.worker.env.pde.shape))
        step = task.context.stop_step
        return Prefix(x=x, step=step, sample_ids=wanted.sample_ids, groups=wanted.groups, policy_version=version)


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """What was measured with one number of actors."""

    actors: int
    updates_per_second: float
    ideal: float
    """Updates per second if everything around the network took no time."""
    of_ideal: float
    """Updates per second over the ideal."""
    waiting: float
    """Share of its time that the learner waits for prefixes."""


def settings(arguments: Arguments, actors: int) -> TrainConfig:
    """Return the settings of a training with so many actors."""
    preset = small(arguments.env)
    batch = arguments.chunks * preset.rollout.chunk
    return preset.with_settings(
        actors=actors,
        actor_cpus=0.01,
        anchor=0.0,
        batch=batch,
        l2=1.0,
        levels=arguments.levels,
        micro_batch=batch,
        reuse=1,
        scope="all",
        staleness=arguments.staleness,
        strategy="fresh",
        workers=1,
    )


def measure(arguments: Arguments, actors: int, base: Path) -> Scaling:
    """Measure the loop with so many actors. ``base``: checkpoint of the base model."""
    from pirf_ray.distributed.driver import start_actors, stop_actors, wait_until_up  # Ray takes seconds to import
    from pirf_ray.distributed.source import ActorSource

    config = settings(arguments, actors)
    info, denoiser = checkpoints.load_denoiser(base)
    weights = {name: p.detach() for name, p in layers.prepare(denoiser, arguments.levels, "freeze").items()}
    handles = start_actors(config, base, info.parameters, SleepingActor, arguments.chunk_seconds)
    wait_until_up(handles)
    source = ActorSource(config.plan(), handles, fixed=False, staleness=config.rollout.staleness)
    source.publish(0, weights)
    waited = began = 0.0
    for update in range(arguments.warmup + arguments.updates):
        if update == arguments.warmup:
            waited, began = 0.0, time.perf_counter()
        asked = time.perf_counter()
        source.batch(update)
        waited += time.perf_counter() - asked
        time.sleep(arguments.learn_seconds)
        source.publish(update + 1, weights)
    seconds = time.perf_counter() - began
    stop_actors(handles)
    rate = arguments.updates / seconds
    ideal = min(actors / (arguments.chunks * arguments.chunk_seconds), 1 / arguments.learn_seconds)
    return Scaling(actors=actors, updates_per_second=rate, ideal=ideal, of_ideal=rate / ideal, waiting=waited / seconds)


def main(argv: list[str] | None = None) -> None:
    """Run the study."""
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.studies.scaling", description=Arguments.__doc__)
    not_there(arguments.out, "out", "results")
    base = absolute(zoo.find(arguments.env, small(arguments.env).resolution))
    configs = [settings(arguments, actors) for actors in arguments.actors]
    from pirf_ray.distributed import cluster  # Ray takes seconds to import, and bad input must be told before

    cluster.connect(max(configs, key=lambda config: config.actor.actors), None)
    measured = [measure(arguments, actors, base) for actors in arguments.actors]
    print_table(table(measured, arguments), TABLE_WIDTH)
    if arguments.out is not None:
        write_json(arguments.out, [vars(m) for m in measured])


def table(measured: Sequence[Scaling], arguments: Arguments) -> Table:
    """Return a row per number of actors."""
    chunks = f"{arguments.chunks} chunks of {arguments.chunk_seconds:g} s per update"
    made = Table(title=f"{chunks}, {arguments.learn_seconds:g} s of learning")
    for column in ("actors", "updates/s", "ideal", "of ideal", "learner waits"):
        made.add_column(column, justify="right")
    for m in measured:
        rates = f"{m.updates_per_second:.3f}", f"{m.ideal:.3f}"
        made.add_row(str(m.actors), *rates, f"{m.of_ideal:.2f}", f"{100 * m.waiting:.0f} %")
    return made


if __name__ == "__main__":
    run_command(main)
