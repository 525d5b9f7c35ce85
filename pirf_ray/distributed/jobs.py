"""Chains of jobs as Ray tasks: as many at once as the cluster has room for."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

import ray

from pirf_ray.config import ConfigError

JobChain = Generator[Any, Any, None]
RETRIES = 3
"""Times a job is begun again whose worker died."""


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

    A chain that has begun goes on before another begins, so that what is finished is finished whole. An error in a job is
    raised here; the results before it have been sent. Ray must be connected.
    """
    slots = room(cpus, gpus, ray.cluster_resources())
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


def room(cpus: float, gpus: float, available: dict[str, float]) -> int:
    """Jobs that fit at once; ConfigError if not even one does."""
    needs = {kind: need for kind, need in (("CPU", cpus), ("GPU", gpus)) if need}
    slots = min(int(available.get(kind, 0.0) / need + 1e-6) for kind, need in needs.items())
    if slots < 1:
        missing = ", ".join(f"{need:g} {kind}s (there are {available.get(kind, 0.0):g})" for kind, need in needs.items())
        raise ConfigError(f"--job-cpus, --job-gpus: no job fits, each needs {missing}")
    return slots
