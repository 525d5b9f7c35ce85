"""The driver's side of a run: the learner on Ray Train workers and its rollout actors."""

import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.util import get_current_placement_group

from envs.rewards import RewardError
from pirf_ray.distributed.actors import RolloutActor
from pirf_ray.distributed.loops import train_loop
from pirf_ray.training.outcome import LearnerFailed
from pirf_ray.training.runs import RunDirectory
from pirf_ray.training.settings import TrainConfig

POLL_SECONDS = 0.5


def explain(run: RunDirectory, error: BaseException) -> str:
    """Return one line: what failed in the end, and from where the run can continue."""
    return f"the learner failed: {last_line(error)}; {newest_checkpoint(run)}"


def newest_checkpoint(run: RunDirectory) -> str:
    """Return from where a run can continue, in words."""
    saved = run.newest()
    return f"the last checkpoint is {saved}; --resume continues from it" if saved else "no checkpoint was written yet"


def last_line(error: BaseException) -> str:
    """Return what failed in the end: Ray's errors begin with the traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def errno_of(error: BaseException) -> int | None:
    """Return the number of the operating system's error that a worker failed with; Ray brings back the traceback's text."""
    found = re.search(r"\[Errno (\d+)\]", last_line(error))
    return int(found[1]) if found else None


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
    """Return a trainer of ``loop(settings)`` on Ray Train workers, restarted after a lost one; Ray's own files go to root/ray_train."""
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


def start_actors(
    config: TrainConfig, base: Path, parameters: dict[str, float], kind: type[RolloutActor] = RolloutActor, *more: float
) -> list[Any]:
    """Return the rollout actors, made by the driver so that they outlive a lost learner. Ray restarts a lost one without limit.

    ``parameters``: of the PDE. ``kind``, and ``more`` that it takes. They are spread over the nodes, but in a placement group,
    a trial's of a sweep, they take the room that it holds for them.
    """
    actor = config.actor
    remote = ray.remote(
        num_cpus=actor.actor_cpus,
        num_gpus=actor.actor_gpus,
        max_restarts=-1,
        max_task_retries=0,
        scheduling_strategy="SPREAD" if get_current_placement_group() is None else None,  # "DEFAULT" would leave the group
    )(kind)
    device = "cuda" if actor.actor_gpus else "cpu"
    task = config.rollout_task(parameters)
    return [remote.remote(task, base, actor.actor_threads, device, *more) for _ in range(actor.actors)]


def wait_until_up(actors: list[Any]) -> None:
    """Return when every actor answers."""
    ray.get([actor.ping.remote() for actor in actors])


def stop_actors(actors: list[Any]) -> None:
    """End the actors and free what they reserve."""
    for actor in actors:
        ray.kill(actor)


def make_trainer(run: RunDirectory, actors: list[object]) -> TorchTrainer:
    """Return the trainer of a run whose rollouts the actors make."""
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
    info, _ = run.load_base()
    actors = start_actors(run.config, run.paths.base, info.parameters)
    run.failure_file.unlink(missing_ok=True)

    def poll() -> None:
        on_poll()
        if run.failure_file.exists():  # Ray Train would start the learner again, to the same end
            raise RewardError(run.failure_file.read_text())

    try:
        failure, interrupted = fit(make_trainer(run, actors), run.stop_file, poll)
    except RewardError as error:
        raise LearnerFailed(f"{' '.join(str(error).split())}; {newest_checkpoint(run)}") from None
    stop_actors(actors)
    if failure:
        raise LearnerFailed(explain(run, failure), errno_of(failure)) from failure
    if interrupted:
        raise KeyboardInterrupt


def fit(trainer: TorchTrainer, stop_file: Path, on_poll: Callable[[], None]) -> tuple[BaseException | None, bool]:
    """Run the trainer to its end; return what it failed with, and whether Ctrl-C asked it, by the stop file, to end."""
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
