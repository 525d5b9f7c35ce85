"""The source seam: the learner gets its prefixes from this process, or from Ray actors (pirf_ray.distributed)."""

from typing import Protocol

import torch

from pirf_ray.diffusion.policy import Policy
from pirf_ray.learning.rollouts.plan import RolloutPlan, sample_ids
from pirf_ray.learning.rollouts.prefixes import Prefix, PrefixTask, make_prefix

ROLLOUT_STREAM = "rollout"
"""Random stream of the prefixes' noise."""


class PrefixSource(Protocol):
    """Source of the prefixes of each update, made as the plan says."""

    def publish(self, version: int, weights: dict[str, torch.Tensor]) -> None:
        """Take the learner's learning tensors after ``version`` updates."""
        ...

    def batch(self, update: int) -> list[Prefix]:
        """Return the prefixes of an update's batch, in the plan's order. Wait for prefixes that are not ready."""
        ...


class PrefixMaker:
    """Maker of chunks with one environment and one policy, in this process or inside a rollout actor."""

    def __init__(self, task: PrefixTask, policy: Policy, device: str = "cpu") -> None:
        self.task, self.policy = task, policy.to(device)
        self.env = task.make_env(device)

    def make(self, chunk: int, version: int) -> Prefix:
        """Return the prefix of a chunk's samples, made with the policy's present weights. ``version``: of these weights."""
        return make_prefix(
            self.env,
            self.policy,
            seed=self.task.seed,
            stream=ROLLOUT_STREAM,
            sample_ids=sample_ids(chunk, self.task.chunk),
            stop_step=self.task.stop_step,
            policy_version=version,
            with_base_output=self.task.with_base_output,
        )


class LocalSource:
    """Source that makes each chunk in this process when it is first asked for."""

    def __init__(self, plan: RolloutPlan, maker: PrefixMaker, *, staleness: int) -> None:
        self.plan, self.maker, self.staleness = plan, maker, staleness
        self._weights: dict[int, dict[str, torch.Tensor]] = {}
        self._prefixes: dict[int, Prefix] = {}

    def publish(self, version: int, weights: dict[str, torch.Tensor]) -> None:
        """Keep a copy of the weights, and drop versions beyond the staleness bound."""
        self._weights[version] = {name: tensor.clone() for name, tensor in weights.items()}
        oldest = version - self.staleness
        self._weights = {v: w for v, w in self._weights.items() if v >= oldest}

    def batch(self, update: int) -> list[Prefix]:
        """Return the prefixes of an update's batch, in the plan's order."""
        retired = self.plan.retired(update)
        self._prefixes = {c: p for c, p in self._prefixes.items() if c >= retired}
        return [self._prefix(chunk) for chunk in self.plan.batch_chunks(update)]

    def _prefix(self, chunk: int) -> Prefix:
        if chunk not in self._prefixes:
            # A resumed run has no weights older than its checkpoint. The weights that it has are within the bound.
            version = 0 if self.maker.policy.scope == "tail" else max(self.plan.version(chunk), min(self._weights))
            if version:
                self.maker.policy.load_learned(self._weights[version])
            self._prefixes[chunk] = self.maker.make(chunk, version)
        return self._prefixes[chunk]
