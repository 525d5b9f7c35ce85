"""Chains of jobs as Ray tasks, as many at once as the cluster has room for."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

import ray

from pirf_ray.distributed import cluster

JobChain = Generator[Any, Any, None]
MOST_AT_ONCE = 1024
RETRIES = 3
"""Times that a job is started again after its worker died."""


def run_chains(
    chains: Iterable[JobChain],
    run: Callable[[Any], Any],
    *,
    cpus: float,
    gpus: float,
    on_start: Callable[[Any], None],
    on_done: Callable[[Any], None],
) -> None:
    """Drive every chain to its end: each job that it yields is run, and it is sent the result.

    A chain that has begun continues before another begins, so that finished chains are whole. An error in a job is raised
    here; the results before it have been sent. Ray must be connected.
    """
    slots = room(cpus, gpus, cluster.node_resources())
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(run)
    waiting = deque(chains)
    running: dict[ray.ObjectRef, tuple[JobChain, Any]] = {}

    def proceed(chain: JobChain, result: Any) -> None:
        try:
            job = chain.send(result)
        except StopIteration:
            return
        running[remote.remote(job)] = chain, job
        on_start(job)

    while waiting or running:
        while waiting and len(running) < slots:
            proceed(waiting.popleft(), None)
        if not running:
            continue
        (ready,), _ = ray.wait(list(running), num_returns=1)
        chain, job = running.pop(ready)
        result = ray.get(ready)
        on_done(job)
        proceed(chain, result)


def room(cpus: float, gpus: float, nodes: list[cluster.Resources]) -> int:
    """Return how many jobs fit at once; ConfigError if not even one does."""
    piece = cluster.resources(cpus, gpus)
    cluster.require_room("--job-cpus, --job-gpus", "a job", [piece], nodes)
    return cluster.count_room([piece], nodes, at_most=MOST_AT_ONCE)
