"""How many trials run at once, and on what: computed from the cluster and checked before anything is placed."""

from collections.abc import Sequence
from dataclasses import dataclass

from pirf_ray.config import ConfigError, TrainConfig
from tune.trials import Mode

HEAD_CPUS = 0.01
"""Of the trial itself, where its actors and workers do the work."""
Resources = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Placement:
    mode: Mode
    bundles: list[Resources]
    """The placement group of one trial: the trial, then its rollout actors."""
    beside: list[Resources]
    """What a trial takes outside its group: Ray Train places its learner workers in a group of their own."""
    at_once: int


def choose_mode(asked: str, config: TrainConfig) -> Mode:
    """auto: distributed where the run asks for GPUs; what a CPU does alone is done with less in one process."""
    if asked == "in-process" or asked == "distributed":
        return asked  # type: ignore[return-value]
    gpus = config.rollout.actor_gpus + config.learner.worker_gpus
    return "distributed" if gpus > 0 else "in-process"


def place(config: TrainConfig, mode: Mode, nodes: Sequence[Resources], *, cpus: float, gpus: float, at_most: int) -> Placement:
    """ConfigError if not even one trial fits the nodes' resources."""
    if mode == "in-process":
        bundles, beside = [_resources(cpus, gpus)], []
    else:
        rollout, learner = config.rollout, config.learner
        bundles = [{"CPU": HEAD_CPUS}, *[_resources(rollout.actor_cpus, rollout.actor_gpus)] * rollout.actors]
        beside = [_resources(learner.worker_cpus, learner.worker_gpus)] * learner.workers
    at_once = 0
    while at_once < at_most and fits(nodes, (bundles + beside) * (at_once + 1)):
        at_once += 1
    if not at_once:
        needs = {kind: sum(b.get(kind, 0.0) for b in bundles + beside) for kind in ("CPU", "GPU")}
        have = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in needs}
        flags = "--trial-cpus, --trial-gpus" if mode == "in-process" else "--vary actors, workers, actor-cpus, ..."
        raise ConfigError(
            f"{flags}: one {mode} trial needs {needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs "
            f"in {len(bundles + beside)} pieces, the cluster has {have['CPU']:g} and {have['GPU']:g} on {len(nodes)} nodes"
        )
    return Placement(mode=mode, bundles=bundles, beside=beside, at_once=at_once)


def fits(nodes: Sequence[Resources], pieces: Sequence[Resources]) -> bool:
    """Whether the pieces find room, the largest first, each on the first node that has it: if they do so here, Ray need not
    wait for room that never comes."""
    free = [dict(node) for node in nodes]
    for piece in sorted(pieces, key=lambda p: (p.get("GPU", 0.0), p.get("CPU", 0.0)), reverse=True):
        for node in free:
            if all(node.get(kind, 0.0) + 1e-6 >= need for kind, need in piece.items()):
                for kind, need in piece.items():
                    node[kind] -= need
                break
        else:
            return False
    return True


def _resources(cpus: float, gpus: float) -> Resources:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
