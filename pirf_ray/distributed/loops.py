"""What each Ray Train worker runs: the canonical loop of pirf_ray.training.finetuning, with rollouts from the actors."""

import logging
from pathlib import Path
from typing import Any

import ray.train
import torch
import torch.distributed as dist

from envs.rewards import RewardError
from pirf_ray.distributed.communicator import TorchCommunicator
from pirf_ray.distributed.source import ActorSource
from pirf_ray.learning.communicator import Communicator, SingleProcess
from pirf_ray.training.finetuning import FineTuning
from pirf_ray.training.runs import RunDirectory


def train_loop(settings: dict[str, Any]) -> None:
    """Continue the run in ``settings["run"]`` to its end, after a restart from its newest checkpoint.

    ``settings``: run (directory), actors (handles that the driver made). The run directory, not Ray, keeps the
    checkpoints: they are there the moment they are written, and a resumed run needs no Ray state.
    """
    logging.basicConfig(level=logging.WARNING)
    run = RunDirectory.open(Path(settings["run"]), given=None)  # the driver has checked it
    config = run.config
    torch.set_num_threads(config.learner.worker_threads)
    communicator: Communicator = TorchCommunicator() if dist.is_initialized() and dist.get_world_size() > 1 else SingleProcess()
    first = communicator.rank == 0
    info, base = run.load_base()
    source = None
    if first:
        fixed, staleness = config.fixed_rollouts, config.rollout.staleness
        source = ActorSource(config.plan(), settings["actors"], fixed=fixed, staleness=staleness)
    device = torch.device("cuda", torch.cuda.current_device()) if config.learner.worker_gpus else torch.device("cpu")
    tuning = FineTuning(config, info, base, source=source, communicator=communicator, device=device, run=run if first else None)
    try:
        guard = tuning.fit()
    except RewardError as error:
        run.failure_file.write_text(str(error))
        raise
    if guard is not None and source is not None:
        counts = {"chunks_made": source.chunks_made, "actors_lost": source.actors_lost}
        run.write_outcome(guard.to_json(), updates=tuning.update, finished=tuning.finished, **counts)
    ray.train.report({"update": tuning.update})
