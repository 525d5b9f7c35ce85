"""Placement of trials: how many run at once, and in which placement groups. Resources are counted by the cluster module."""

from collections.abc import Sequence
from dataclasses import dataclass

from pirf_ray.distributed import cluster
from pirf_ray.distributed.cluster import Resources
from pirf_ray.training.settings import TrainConfig
from tune.directory import Sweep
from tune.settings import AskedMode, Mode

HEAD_CPUS = 0.01
"""CPUs of the trial's own process if its actors and workers do the work."""
FLAGS: dict[Mode, str] = {
    "in-process": "--trial-cpus, --trial-gpus",
    "distributed": "--vary actors, workers, actor-cpus, ...",
}
"""Flags that decide what a trial reserves."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Placement of the trials of a sweep."""

    mode: Mode
    """How a trial runs."""
    bundles: list[Resources]
    """The placement group of one trial: the trial's process, then its rollout actors."""
    beside: list[Resources]
    """Reservations of a trial outside its group: Ray Train places its learner workers in a group of their own."""
    at_once: int
    """Trials at once."""


def place_trials(sweep: Sweep, nodes: Sequence[Resources]) -> Placement:
    """Place the trials of a sweep on the nodes; ConfigError if not even one fits."""
    a = sweep.arguments
    mode = choose_mode(a.mode, sweep.config)
    return place(
        sweep.config, mode, nodes, cpus=a.trial_cpus, gpus=a.trial_gpus, at_most=min(sweep.total, a.at_once or sweep.total)
    )


def choose_mode(asked: AskedMode, config: TrainConfig) -> Mode:
    """Return how trials run. auto: distributed if the run asks for GPUs; on CPUs one process does the same with less."""
    if asked != "auto":
        return asked
    return "distributed" if any("GPU" in piece for piece in cluster.pieces_of(config)) else "in-process"


def place(config: TrainConfig, mode: Mode, nodes: Sequence[Resources], *, cpus: float, gpus: float, at_most: int) -> Placement:
    """Return the placement of at most ``at_most`` trials at once; ConfigError if not even one fits the nodes.

    ``cpus``, ``gpus``: of an in-process trial.
    """
    bundles, beside = [cluster.resources(cpus, gpus)], []
    if mode == "distributed":
        pieces = cluster.pieces_of(config)
        actors = config.actor.actors
        bundles, beside = [cluster.resources(HEAD_CPUS, 0), *pieces[:actors]], pieces[actors:]
    cluster.require_room(FLAGS[mode], f"one {mode} trial", bundles + beside, nodes)
    at_once = cluster.count_room(bundles + beside, nodes, at_most=at_most)
    return Placement(mode=mode, bundles=bundles, beside=beside, at_once=at_once)
