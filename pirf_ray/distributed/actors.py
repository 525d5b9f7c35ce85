"""Rollout actors: stateless but for their weights, so that a lost one costs only the chunk it was making."""

import os
from pathlib import Path

import torch

from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.policy import PolicySettings, make_policy
from pirf_ray.distributed.weights import WeightMessage
from pirf_ray.learning.rollouts.prefixes import Prefix, PrefixTask
from pirf_ray.learning.rollouts.sources import PrefixMaker


class RolloutActor:
    """Makes chunks of prefixes. ``make(chunk, version, message)``: a redo gives the same bits."""

    def __init__(self, task: PrefixTask, policy: PolicySettings, base: Path, threads: int, device: str) -> None:
        torch.set_num_threads(threads)
        _, denoiser = checkpoints.load_denoiser(base)
        self.maker = PrefixMaker(task, make_policy(denoiser, task.sampler.process(), policy), device)
        self.version = 0

    def ping(self) -> bool:
        """Answer when the actor is up."""
        return True

    def process_id(self) -> int:
        """Return the operating-system process, for whoever wants to watch (or kill) it."""
        return os.getpid()

    def make(self, chunk: int, version: int, message: WeightMessage | None) -> Prefix:
        """Make a chunk under the weights of ``version`` (``message`` is None where the base model makes every prefix)."""
        self.load(version, message)
        return self.maker.make(chunk, version)

    def load(self, version: int, message: WeightMessage | None) -> None:
        """Take in the weights of ``version``, unless the actor has them."""
        if message is not None and version != self.version:
            self.maker.policy.load_learned(message.unpack(version))
            self.version = version
