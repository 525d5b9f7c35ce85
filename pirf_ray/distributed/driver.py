"""The driver's side: connect to or start Ray, check the resources, run the learner and its actors."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer

from pirf_ray.config import ConfigError, LearnerFailed, TrainConfig
from pirf_ray.distributed.actors import start_actors, stop_actors
from pirf_ray.distributed.train_loop import train_loop
from pirf_ray.runs import RunDirectory

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5
MEMORY_STORE_BYTES = 256 * 1024 * 1024


def _explain(run: RunDirectory, error: BaseException) -> str:
    """One line: what failed in the end, and from where the run can go on."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    saved = sorted(run.paths.checkpoints.glob("update_*"))
    where = f"the last checkpoint is {saved[-1]}; --resume goes on from it" if saved else "no checkpoint was written yet"
    return f"the learner failed: {lines[-1] if lines else type(error).__name__}; {where}"


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
    if ray.is_initialized():
        check_resources(config, ray.cluster_resources())
        return
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        try:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except ConnectionError as error:
            raise ConfigError(f"--address {address}: no Ray cluster answers there ({error})") from None
    else:
        have = local_resources()
        check_resources(config, have)
        with children_ignore_ctrl_c():
            ray.init(
                num_cpus=int(have["CPU"]),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=MEMORY_STORE_BYTES,
            )
    check_resources(config, ray.cluster_resources())


def make_trainer(run: RunDirectory, actors: list[object]) -> TorchTrainer:
    config = run.config
    resources = {"CPU": config.learner.worker_cpus}
    if config.learner.worker_gpus:
        resources["GPU"] = config.learner.worker_gpus
    return TorchTrainer(
        train_loop,
        train_loop_config={"run": str(run.paths.root), "actors": actors},
        scaling_config=ScalingConfig(
            num_workers=config.learner.workers, use_gpu=config.learner.worker_gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="ray_train",
            storage_path=str(run.paths.root),
            failure_config=FailureConfig(max_failures=config.learner.max_failures, controller_failure_limit=3),
        ),
    )


def run_distributed(run: RunDirectory, on_poll: Callable[[], None]) -> None:
    """Run the learner to its end; ``on_poll`` is called about twice a second. Ray must be connected.

    Ctrl-C asks the learner to end after its present update, with a checkpoint, and raises KeyboardInterrupt afterwards.
    LearnerFailed if the learner failed more often than ``max_failures`` allows.
    """
    actors = start_actors(run.config, run.paths.base)
    trainer = make_trainer(run, actors)
    failure: list[BaseException] = []
    # Not thread.join: interrupted by Ctrl-C, Python 3.11 takes a thread that still runs for one that has ended.
    done = threading.Event()

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # re-raised by the driver's main thread, below
            failure.append(error)
        finally:
            done.set()

    # In a thread of its own: on the main thread Ray Train's SIGINT handler would kill the learner before its checkpoint.
    threading.Thread(target=fit, daemon=True).start()
    interrupted = False
    while not done.is_set():
        try:
            done.wait(POLL_SECONDS)
            on_poll()
        except KeyboardInterrupt:
            if interrupted:
                raise
            interrupted = True
            run.stop_file.touch()
    stop_actors(actors)
    run.stop_file.unlink(missing_ok=True)
    if failure:
        raise LearnerFailed(_explain(run, failure[0])) from failure[0]
    if interrupted:
        raise KeyboardInterrupt
