"""Rollout actors: stateless but for their weights, so that a lost one costs only the chunk it was making."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from ray.util import get_current_placement_group

from pirf_ray import checkpoints
from pirf_ray.config import TrainConfig
from pirf_ray.distributed.weights import WeightMessage
from pirf_ray.learner import make_policy
from pirf_ray.plan import sample_ids
from pirf_ray.rollout import Prefix
from pirf_ray.sources import ChunkMaker


@dataclass(frozen=True, kw_only=True)
class Shipment:
    """A prefix on its way: numpy, read-only on arrival."""

    chunk: int
    x: np.ndarray
    step: int
    sample_ids: tuple[int, ...]
    policy_version: int
    base_output: np.ndarray | None
    seconds: float

    def to_prefix(self) -> Prefix:
        return Prefix(
            x=torch.from_numpy(self.x.copy()),
            step=self.step,
            sample_ids=self.sample_ids,
            policy_version=self.policy_version,
            base_output=None if self.base_output is None else torch.from_numpy(self.base_output.copy()),
        )


class RolloutActor:
    """Makes chunks of prefixes. ``make(chunk, version, message)``: a redo gives the same bits."""

    def __init__(self, config: TrainConfig, base: Path) -> None:
        torch.set_num_threads(config.rollout.actor_threads)
        _, denoiser = checkpoints.load_denoiser(base)
        device = "cuda" if config.rollout.actor_gpus and torch.cuda.is_available() else "cpu"
        self.maker = ChunkMaker(config, make_policy(config, denoiser), device)
        self.version = 0

    def ping(self) -> bool:
        """Answers when the actor is up."""
        return True

    def process_id(self) -> int:
        """Operating-system process, for whoever wants to watch (or kill) it."""
        return os.getpid()

    def make(self, chunk: int, version: int, message: WeightMessage | None) -> Shipment:
        """A chunk under the weights of ``version`` (``message`` is None where the base model makes every prefix)."""
        started = time.perf_counter()
        if message is not None and version != self.version:
            self.maker.policy.load_learned(message.unpack(version))
            self.version = version
        prefix = self.maker.make(chunk, version)
        return Shipment(
            chunk=chunk,
            x=prefix.x.cpu().numpy(),
            step=prefix.step,
            sample_ids=prefix.sample_ids,
            policy_version=version,
            base_output=None if prefix.base_output is None else prefix.base_output.cpu().numpy(),
            seconds=time.perf_counter() - started,
        )


class SleepingActor(RolloutActor):
    """Takes and checks real weights, sleeps for as long as an accelerator would compute, and ships a prefix of the real size: what
    is left to measure is everything around the network.
    """

    def __init__(self, config: TrainConfig, base: Path, seconds: float) -> None:
        super().__init__(config, base)
        self.seconds = seconds

    def make(self, chunk: int, version: int, message: WeightMessage | None) -> Shipment:
        if message is not None and version != self.version:
            self.maker.policy.load_learned(message.unpack(version))
            self.version = version
        time.sleep(self.seconds)
        ids = tuple(sample_ids(self.maker.config, chunk))
        x = np.zeros((len(ids), *self.maker.env.pde.shape), dtype=np.float32)
        step = self.maker.config.prefix_steps
        return Shipment(
            chunk=chunk, x=x, step=step, sample_ids=ids, policy_version=version, base_output=None, seconds=self.seconds
        )


def start_actors(config: TrainConfig, base: Path, kind: type[RolloutActor] = RolloutActor, *more: float) -> list[Any]:
    """The rollout actors, made by the driver so that they outlive a lost learner. Ray restarts a lost one without limit.

    ``kind``, and ``more`` that it takes. They are spread over the nodes, but in a placement group, a trial's of a sweep, they take
    the room that it holds for them.
    """
    remote = ray.remote(
        num_cpus=config.rollout.actor_cpus,
        num_gpus=config.rollout.actor_gpus,
        max_restarts=-1,
        max_task_retries=0,
        scheduling_strategy="SPREAD" if get_current_placement_group() is None else None,  # "DEFAULT" would leave the group
    )(kind)
    return [remote.remote(config, base, *more) for _ in range(config.rollout.actors)]


def wait_until_up(actors: list[Any]) -> None:
    """Return when every actor answers."""
    ray.get([actor.ping.remote() for actor in actors])


def stop_actors(actors: list[Any]) -> None:
    """End the actors and free what they reserve."""
    for actor in actors:
        ray.kill(actor)
