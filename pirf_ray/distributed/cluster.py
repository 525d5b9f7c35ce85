"""The cluster: joined or started, and the only place that counts its resources."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import ray
import torch

from envs.common.checks import ConfigError
from pirf_ray.training.settings import TrainConfig

PROBE_SECONDS = 10.0
MEMORY_STORE_BYTES = 256 * 1024 * 1024
Resources = dict[str, float]
"""CPUs and GPUs by ``CPU`` and ``GPU``."""


def resources(cpus: float, gpus: float) -> Resources:
    """Return what one process reserves."""
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def pieces_of(config: TrainConfig) -> list[Resources]:
    """Return what each actor and each worker of a run reserves."""
    actor, learner = config.actor, config.learner
    return [
        *[resources(actor.actor_cpus, actor.actor_gpus)] * actor.actors,
        *[resources(learner.worker_cpus, learner.worker_gpus)] * learner.workers,
    ]


def require_room(flags: str, what: str, pieces: Sequence[Resources], nodes: Sequence[Resources]) -> None:
    """Raise ConfigError, the one message about missing resources, unless all pieces find room on the nodes."""
    if fits(nodes, pieces):
        return
    needs = {kind: sum(piece.get(kind, 0.0) for piece in pieces) for kind in ("CPU", "GPU")}
    have = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in needs}
    raise ConfigError(
        f"{flags}: {what} needs {needs['CPU']:g} CPUs and {needs['GPU']:g} GPUs in {len(pieces)} pieces, "
        f"the cluster has {have['CPU']:g} and {have['GPU']:g} on {len(nodes)} nodes"
    )


def check_run(config: TrainConfig, nodes: Sequence[Resources]) -> None:
    """Raise ConfigError if a run does not fit the nodes."""
    flags = "--actors, --actor-cpus, --actor-gpus, --workers, --worker-cpus, --worker-gpus"
    require_room(flags, "the run", pieces_of(config), nodes)


def count_room(pieces: Sequence[Resources], nodes: Sequence[Resources], *, at_most: int) -> int:
    """Return how many times all pieces find room together, up to ``at_most``."""
    count = 0
    while count < at_most and fits(nodes, list(pieces) * (count + 1)):
        count += 1
    return count


def fits(nodes: Sequence[Resources], pieces: Sequence[Resources]) -> bool:
    """Return whether the pieces find room, the largest first, each on the first node that has it.

    If they do so here, Ray need not wait for room that never comes.
    """
    free = [dict(node) for node in nodes]
    for piece in sorted(pieces, key=lambda p: (p.get("GPU", 0.0), p.get("CPU", 0.0)), reverse=True):
        for node in free:
            if all(node.get(kind, 0.0) + 1e-6 >= need for kind, need in piece.items()):
                for kind, need in piece.items():
                    node[kind] = node.get(kind, 0.0) - need
                break
        else:
            return False
    return True


def local_resources() -> list[Resources]:
    """Return the one node that a local Ray would have."""
    return [{"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}]


def node_resources() -> list[Resources]:
    """Return CPUs and GPUs of each node of the joined cluster that is alive."""
    return [{kind: node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU")} for node in ray.nodes() if node["Alive"]]


def known_nodes() -> list[Resources]:
    """Return the joined cluster's nodes, or before that this machine's."""
    return node_resources() if ray.is_initialized() else local_resources()


def connect(config: TrainConfig, address: str | None) -> None:
    """Join the cluster at ``address`` (or RAY_ADDRESS), or start Ray here with every port on loopback; check the run's room."""
    if not ray.is_initialized() and not (address or os.environ.get("RAY_ADDRESS")):
        check_run(config, local_resources())
    join(address)
    check_run(config, node_resources())


def join(address: str | None, *, dashboard: bool = False) -> None:
    """Join or start Ray, as ``connect`` says, unless this process has it already.

    ``dashboard``: of a Ray that is started here, on loopback. Ray Tune needs it: without it the placement groups of trials that
    are stopped early are never given back.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        return
    if address:
        check_answers(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ConfigError(f"--address {address}: no Ray cluster answers there ({error})") from None
        return
    with children_ignore_ctrl_c():
        ray.init(
            address="local",  # whatever other cluster runs on this machine
            num_cpus=int(local_resources()[0]["CPU"]),
            include_dashboard=dashboard,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=MEMORY_STORE_BYTES,
        )


def check_answers(address: str) -> None:
    """Raise ConfigError where nothing listens: Ray itself waits minutes for a cluster that is not there, and says little."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"--address {address}: no Ray cluster answers there ({error})") from None


@contextmanager
def children_ignore_ctrl_c() -> Iterator[None]:
    """Let processes started in the block inherit an ignored SIGINT.

    A terminal sends Ctrl-C to all of them, and a learner that it killed could not write its checkpoint: only the driver
    acts on it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
