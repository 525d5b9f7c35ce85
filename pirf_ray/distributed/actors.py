"""Rollout actors: stateless but for their weights, so that a lost one costs only the chunk it was making."""

import os
from pathlib import Path

import torch

from envs.environments import require_same_pde
from pirf_ray.diffusion import checkpoints
from pirf_ray.distributed.weights import WeightMessage
from pirf_ray.learning.rollouts.records import Rollouts
from pirf_ray.learning.rollouts.sources import RolloutTask, RolloutWorker


class RolloutActor:
    """Makes chunks of rollouts. ``make(chunk, version, message)``: a redo gives the same bits."""

    def __init__(self, task: RolloutTask, base: Path, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        info, denoiser = checkpoints.load_denoiser(base)
        self.worker = RolloutWorker(task, denoiser, device)
        require_same_pde(info.pde(), self.worker.env.pde)
        self.version: int | None = None

    def ping(self) -> bool:
        """Answer when the actor is up."""
        return True

    def process_id(self) -> int:
        """Return the operating-system process, for whoever wants to watch (or kill) it."""
        return os.getpid()

    def make(self, chunk: int, version: int, message: WeightMessage | None) -> Rollouts:
        """Make a chunk under the weights of ``version`` (``message`` is None where the base model makes every rollout)."""
        self.load(version, message)
        return self.worker.make(chunk, version)

    def load(self, version: int, message: WeightMessage | None) -> None:
        """Take in the weights of ``version``, unless the actor has them."""
        if message is not None and version != self.version:
            self.worker.load(message.unpack(version))
            self.version = version
