"""The driver's side: connect to or start Ray, check the resources, run the learner and its actors."""

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pirf_ray.config import ConfigError, LearnerFailed, TrainConfig
from pirf_ray.distributed.actors import start_actors, stop_actors
from pirf_ray.distributed.train_loop import train_loop
from pirf_ray.runs import RunDirectory

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
PROBE_SECONDS = 10.0
MEMORY_STORE_BYTES = 256 * 1024 * 1024


def _explain(run: RunDirectory, error: BaseException) -> str:
    """One line: what failed in the end, and from where the run can go on."""
    saved = sorted(run.paths.checkpoints.glob("update_*"))
    where = f"the last checkpoint is {saved[-1]}; --resume goes on from it" if saved else "no checkpoint was written yet"
    return f"the learner failed: {last_line(error)}; {where}"


def last_line(error: BaseException) -> str:
    """What failed in the end: Ray's errors begin with the traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def errno_of(error: BaseException) -> int | None:
    """The operating system's error that a worker failed with, if it was one: of it Ray brings back the traceback's text."""
    found = re.search(r"\[Errno (\d+)\]", last_line(error))
    return int(found[1]) if found else None


def required(config: TrainConfig) -> dict[str, float]:
    """CPUs and GPUs that a run reserves."""
    r, w = config.rollout, config.learner
    return {
        "CPU": r.actors * r.actor_cpus + w.workers * w.worker_cpus,
        "GPU": r.actors * r.actor_gpus + w.workers * w.worker_gpus,
    }


def check_resources(config: TrainConfig, available: dict[str, float]) -> None:
    """ConfigError that says what is missing, before anything is placed."""
    for kind, need in required(config).items():
        have = available.get(kind, 0.0)
        if need > have + 1e-6:
            raise ConfigError(
                f"--actors {config.rollout.actors} and --workers {config.learner.workers} need {need:g} {kind}s "
                f"(--actor-{kind.lower()}s {getattr(config.rollout, f'actor_{kind.lower()}s'):g} and "
                f"--worker-{kind.lower()}s {getattr(config.learner, f'worker_{kind.lower()}s'):g} each), "
                f"the cluster has {have:g}"
            )


def local_resources() -> dict[str, float]:
    """What a local Ray would have."""
    import torch

    return {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}


@contextmanager
def children_ignore_ctrl_c() -> Iterator[None]:
    """Processes started here inherit an ignored SIGINT.

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


def connect(config: TrainConfig, address: str | None) -> None:
    """Join the cluster at ``address`` (or RAY_ADDRESS), or start Ray here with every port on loopback; check resources."""
    if not ray.is_initialized() and not (address or os.environ.get("RAY_ADDRESS")):
        check_resources(config, local_resources())
    check_resources(config, join(address))


def join(address: str | None, *, dashboard: bool = False) -> dict[str, float]:
    """Ray, as ``connect`` says, unless this process has it already; returns the cluster's resources.

    ``dashboard``: of a Ray that is started here, on loopback. Ray Tune needs it: without it the placement groups of trials that
    are stopped early are never given back.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if ray.is_initialized():
        return ray.cluster_resources()
    if address:
        check_answers(address)
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ConfigError(f"--address {address}: no Ray cluster answers there ({error})") from None
    else:
        with children_ignore_ctrl_c():
            ray.init(
                address="local",  # whatever other cluster runs on this machine
                num_cpus=int(local_resources()["CPU"]),
                include_dashboard=dashboard,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=MEMORY_STORE_BYTES,
            )
    return ray.cluster_resources()


def check_answers(address: str) -> None:
    """ConfigError where nothing listens: Ray itself waits minutes for a cluster that is not there, and says little."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # "auto"
    try:
        socket.create_connection((host.strip("[]"), int(port)), PROBE_SECONDS).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConfigError(f"--address {address}: no Ray cluster answers there ({error})") from None


def node_resources() -> list[dict[str, float]]:
    """CPUs and GPUs of each node that is alive."""
    return [{kind: node["Resources"].get(kind, 0.0) for kind in ("CPU", "GPU")} for node in ray.nodes() if node["Alive"]]


def torch_trainer(
    loop: Callable[[dict[str, Any]], None],
    settings: dict[str, Any],
    *,
    workers: int,
    cpus: float,
    gpus: float,
    root: Path,
    max_failures: int,
) -> TorchTrainer:
    """``loop(settings)`` on Ray Train workers, begun again after a lost one; Ray's own files go to root/ray_train."""
    return TorchTrainer(
        loop,
        train_loop_config=settings,
        scaling_config=ScalingConfig(
            num_workers=workers, use_gpu=gpus > 0, resources_per_worker={"CPU": cpus} | ({"GPU": gpus} if gpus else {})
        ),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(root),
            failure_config=FailureConfig(max_failures=max_failures, controller_failure_limit=3),
        ),
    )


def make_trainer(run: RunDirectory, actors: list[object]) -> TorchTrainer:
    learner = run.config.learner
    return torch_trainer(
        train_loop,
        {"run": str(run.paths.root), "actors": actors},
        workers=learner.workers,
        cpus=learner.worker_cpus,
        gpus=learner.worker_gpus,
        root=run.paths.root,
        max_failures=learner.max_failures,
    )


def run_distributed(run: RunDirectory, on_poll: Callable[[], None]) -> None:
    """Run the learner to its end; ``on_poll`` is called about twice a second. Ray must be connected.

    Ctrl-C asks the learner to end after its present update, with a checkpoint, and raises KeyboardInterrupt afterwards.
    LearnerFailed if the learner failed more often than ``max_failures`` allows.
    """
    actors = start_actors(run.config, run.paths.base)
    failure, interrupted = fit(make_trainer(run, actors), run.stop_file, on_poll)
    stop_actors(actors)
    if failure:
        raise LearnerFailed(_explain(run, failure), errno_of(failure)) from failure
    if interrupted:
        raise KeyboardInterrupt


def fit(trainer: TorchTrainer, stop_file: Path, on_poll: Callable[[], None]) -> tuple[BaseException | None, bool]:
    """Run the trainer to its end: what it failed with, and whether Ctrl-C asked it, by the stop file, to end."""
    failure: list[BaseException] = []
    # Not thread.join: interrupted by Ctrl-C, Python 3.11 takes a thread that still runs for one that has ended.
    done = threading.Event()

    def run() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # given back to the driver's main thread, below
            failure.append(error)
        finally:
            done.set()

    # In a thread of its own: on the main thread Ray Train's SIGINT handler would kill the learner before its checkpoint.
    threading.Thread(target=run, daemon=True).start()
    interrupted = False
    while not done.is_set():
        try:
            done.wait(POLL_SECONDS)
            on_poll()
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            stop_file.touch()
    stop_file.unlink(missing_ok=True)
    return (failure[0] if failure else None), interrupted
