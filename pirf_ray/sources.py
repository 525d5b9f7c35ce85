"""Where the learner gets its prefixes: from this process here, from Ray actors in pirf_ray.distributed."""

from typing import Protocol

import torch

from pirf_ray.config import TrainConfig
from pirf_ray.plan import make_plan, sample_ids
from pirf_ray.policy import Policy
from pirf_ray.rollout import Prefix, make_env, make_prefix

ROLLOUT_STREAM = "rollout"


class PrefixSource(Protocol):
    """Gives the prefixes of each update, made as the plan says."""

    def publish(self, version: int, weights: dict[str, torch.Tensor]) -> None:
        """The learner's new learning tensors."""
        ...

    def batch(self, update: int) -> list[Prefix]:
        """The chunks of this update's batch, in the plan's order. Waits for those that are not ready."""
        ...


class ChunkMaker:
    """Makes chunks: one environment, one policy. The same object serves in process and inside a rollout actor."""

    def __init__(self, config: TrainConfig, policy: Policy, device: str = "cpu") -> None:
        self.config, self.policy = config, policy.to(device)
        self.env = make_env(
            config.env,
            num_envs=config.rollout.chunk,
            resolution=config.resolution,
            num_steps=config.sampler.num_steps,
            solver=config.sampler.solver,
            device=device,
        )

    def make(self, chunk: int, version: int) -> Prefix:
        """Prefix of the chunk's samples under the policy's present weights, which have the given version."""
        return make_prefix(
            self.env,
            self.policy,
            seed=self.config.seed,
            stream=ROLLOUT_STREAM,
            sample_ids=sample_ids(self.config, chunk),
            stop_step=self.config.prefix_steps,
            policy_version=version,
            with_base_output=self.config.regularization.anchor > 0,
        )


class LocalSource:
    """Makes each chunk when it is first asked for, in this process."""

    def __init__(self, config: TrainConfig, policy: Policy, device: str = "cpu") -> None:
        self.config = config
        self.plan = make_plan(config)
        self.maker = ChunkMaker(config, policy, device)
        self._weights: dict[int, dict[str, torch.Tensor]] = {}
        self._prefixes: dict[int, Prefix] = {}

    def publish(self, version: int, weights: dict[str, torch.Tensor]) -> None:
        self._weights[version] = {name: tensor.clone() for name, tensor in weights.items()}
        oldest = version - self.config.rollout.staleness
        self._weights = {v: w for v, w in self._weights.items() if v >= oldest}

    def batch(self, update: int) -> list[Prefix]:
        retired = self.plan.retired(update)
        self._prefixes = {c: p for c, p in self._prefixes.items() if c >= retired}
        return [self._prefix(chunk) for chunk in self.plan.batch_chunks(update)]

    def _prefix(self, chunk: int) -> Prefix:
        if chunk not in self._prefixes:
            # A resumed run no longer has weights older than its checkpoint: fresher ones are within the bound.
            version = max(self.plan.version(chunk), min(self._weights)) if self.config.pirf.scope == "all" else 0
            if version:
                self.maker.policy.load_learned(self._weights[version])
            self._prefixes[chunk] = self.maker.make(chunk, version)
        return self._prefixes[chunk]
