"""How updates/s grow with rollout actors, where an accelerator's time is a sleep: what is measured is everything around the network.

``python -m pirf_ray.scaling`` runs the real queue, weight sync and Ray actors, with a learner that sleeps too, for 1 to 16 actors,
against the ideal min(actors / (chunks an update x chunk seconds), 1 / learn seconds).
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

from rich.table import Table

from pirf_ray import checkpoints, truncation, zoo
from pirf_ray.checkpoints import write_json
from pirf_ray.cli import parse, print_table, run_command
from pirf_ray.config import ConfigError, TrainConfig
from pirf_ray.presets import small
from pirf_ray.training import absolute


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Measure how fine-tuning scales with rollout actors whose network time is simulated by a sleep."""

    env: str = "Burgers-v0"
    """The PDE; sizes of prefixes and weights are its shipped base model's."""
    actors: tuple[int, ...] = (1, 2, 4, 8, 16)
    """Numbers of rollout actors."""
    chunks: int = 16
    """Chunks an update."""
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
    """Updates before."""
    out: Path | None = None
    """JSON file of the figures; never overwritten."""

    def __post_init__(self) -> None:
        if min(self.actors, default=0) < 1 or min(self.chunks, self.updates) < 1 or self.warmup < 0:
            raise ConfigError("--actors, --chunks and --updates must be at least 1, --warmup not negative")
        if min(self.chunk_seconds, self.learn_seconds) <= 0:
            raise ConfigError("--chunk-seconds and --learn-seconds must be positive")


def settings(arguments: Arguments, actors: int) -> TrainConfig:
    preset = small(arguments.env)
    rollout = replace(preset.rollout, strategy="fresh", reuse=1, staleness=arguments.staleness, actors=actors, actor_cpus=0.01)
    batch = arguments.chunks * rollout.chunk
    return replace(
        preset,
        pirf=replace(preset.pirf, scope="all", levels=arguments.levels),
        regularization=replace(preset.regularization, anchor=0.0, l2=1.0),
        optimizer=replace(preset.optimizer, batch=batch, micro_batch=batch),
        rollout=rollout,
        learner=replace(preset.learner, workers=1),
    )


def measure(arguments: Arguments, actors: int, base: Path) -> dict[str, float]:
    """Updates/s, their ideal, and the share of its time that the learner waits for prefixes."""
    from pirf_ray.distributed.actors import SleepingActor, start_actors, stop_actors, wait_until_up
    from pirf_ray.distributed.source import ActorSource

    config = settings(arguments, actors)
    _, denoiser = checkpoints.load_denoiser(base)
    weights = {name: p.detach() for name, p in truncation.prepare(denoiser, arguments.levels, "freeze").items()}
    handles = start_actors(config, base, SleepingActor, arguments.chunk_seconds)
    wait_until_up(handles)
    source = ActorSource(config, handles)
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
    return {"actors": actors, "updates_per_second": rate, "ideal": ideal, "of_ideal": rate / ideal, "waiting": waited / seconds}


def main(argv: list[str] | None = None) -> None:
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.scaling", description=Arguments.__doc__)
    if arguments.out is not None and arguments.out.exists():
        raise FileExistsError(f"--out {arguments.out} exists; results are never overwritten")
    base = absolute(zoo.find(arguments.env, small(arguments.env).resolution))
    for actors in arguments.actors:
        settings(arguments, actors)
    from pirf_ray.distributed import driver  # Ray takes seconds to import: after the checks

    driver.connect(settings(arguments, max(arguments.actors)), None)
    figures = [measure(arguments, actors, base) for actors in arguments.actors]
    print_table(table(figures, arguments), 100)
    if arguments.out is not None:
        write_json(arguments.out, figures)


def table(figures: list[dict[str, float]], arguments: Arguments) -> Table:
    made = Table(
        title=f"{arguments.chunks} chunks of {arguments.chunk_seconds:g} s an update, {arguments.learn_seconds:g} s of learning"
    )
    for column in ("actors", "updates/s", "ideal", "of ideal", "learner waits"):
        made.add_column(column, justify="right")
    for f in figures:
        rates = [f"{f[name]:.3f}" for name in ("updates_per_second", "ideal")]
        made.add_row(f"{f['actors']:g}", *rates, f"{f['of_ideal']:.2f}", f"{100 * f['waiting']:.0f} %")
    return made


if __name__ == "__main__":
    run_command(main)
