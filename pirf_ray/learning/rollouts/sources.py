"""The source seam: the learner gets its rollouts from this process, or from Ray actors (pirf_ray.distributed)."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import torch

import envs  # noqa: F401  (registers the environments)
from envs.common.parts import PartSettings
from envs.environments import DenoisingVectorEnv
from envs.pdes import PDE, make_pde
from envs.rewards import NoReward, Reward, find_reward
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.diffusion.policy import PolicySettings
from pirf_ray.diffusion.sampling import SamplerSettings
from pirf_ray.learning.parameters.attach import ParameterChoice, make_policies
from pirf_ray.learning.rollouts.base import MAKERS, MakerContext, Requests
from pirf_ray.learning.rollouts.plan import RolloutPlan, sample_ids
from pirf_ray.learning.rollouts.records import Rollouts
from pirf_ray.learning.rollouts.samples import GroupedReward

ROLLOUT_STREAM = "rollout"
"""Random stream of the rollouts' noise."""
LEARNABLE, REFERENCE = "learnable/", "reference/"
"""Prefixes of the published tensors that belong to learnables, and to a reference that was moved."""


class RolloutSource(Protocol):
    """Source of the rollouts of each update, made as the plan says."""

    def publish(self, version: int, weights: dict[str, torch.Tensor]) -> None:
        """Take the tensors that make rollouts after ``version`` updates."""
        ...

    def batch(self, update: int) -> list[Rollouts]:
        """Return the rollouts of an update's batch, in the plan's order. Wait for rollouts that are not ready."""
        ...


@dataclass(frozen=True, kw_only=True)
class RolloutTask:
    """Description of the rollouts to make. It travels to the actors."""

    env: str
    """Env id of the PDE, as registered with Gymnasium."""
    resolution: int
    """Rows and columns of the fields."""
    parameters: dict[str, float] = field(default_factory=dict)
    """Parameters of the PDE, such as the Reynolds number."""
    sampler: SamplerSettings
    """Settings of the sampler."""
    policy: PolicySettings
    """Settings of the policy."""
    learning: ParameterChoice
    """Learning parameters, which may be attached to the network."""
    maker: str
    """Name of the maker."""
    maker_settings: PartSettings
    """Settings of the maker."""
    context: MakerContext
    """What the maker knows of the training."""
    reward: str
    """Name of the reward, for rollouts that carry rewards."""
    reward_settings: PartSettings
    """Settings of the reward."""
    seed: int
    """Seed of the noise."""
    chunk: int
    """Samples made at once."""
    group: int
    """Samples of one group."""

    def pde(self) -> PDE:
        """Return the PDE with its parameters."""
        return make_pde(self.env, self.resolution, **self.parameters)

    def make_env(self, reward: Reward, device: str = "cpu") -> DenoisingVectorEnv:
        """Return the environment of ``gymnasium.make_vec``. TypeError if another class is registered."""
        arguments: dict[str, Any] = {
            "resolution": self.resolution,
            **self.sampler.arguments(),
            "device": device,
            "tensors": True,
            "reward": reward,
            **self.parameters,
        }
        env = gymnasium.make_vec(f"envs:{self.env}", num_envs=self.chunk, **arguments)
        if not isinstance(env, DenoisingVectorEnv):
            raise TypeError(f"{self.env} is registered with {type(env).__name__}, expected a DenoisingVectorEnv")
        return env

    def requests(self, chunk: int, version: int) -> Requests:
        """Return the samples of a chunk, which the weights of ``version`` make."""
        ids = sample_ids(chunk, self.chunk)
        return Requests(
            sample_ids=tuple(ids),
            groups=tuple(i // self.group for i in ids),
            seed=self.seed,
            stream=ROLLOUT_STREAM,
            version=version,
        )


class RolloutWorker:
    """Environment, policies and maker of one process: this one, or that of a rollout actor."""

    def __init__(self, task: RolloutTask, base: AbstractDenoiser, device: str = "cpu", reward: Reward | None = None) -> None:
        """Make everything. ``reward``: a reward object in place of the task's reward name."""
        self.task = task
        self.maker = MAKERS.make(task.maker, task.maker_settings, task.context)
        own: Reward = NoReward()
        if self.maker.rewarded:
            own = reward or find_reward(task.reward, task.pde(), task.reward_settings)
            own = GroupedReward(own, task.group) if own.scope == "set" else own
        self.env = task.make_env(own, device)
        self.policies, _ = make_policies(base, self.env.process, task.policy, task.learning)
        self.policies.to(torch.device(device))

    def load(self, tensors: dict[str, torch.Tensor]) -> None:
        """Take in published tensors: those of the behaviour policy, and those of learnables for a maker that uses them."""
        self.policies.tuned.load_learned(_without_prefix(tensors))
        reference, learnables = (_with_prefix(tensors, prefix) for prefix in (REFERENCE, LEARNABLE))
        if reference:
            self.policies.move_reference(reference)
        take = getattr(self.maker, "load_learnables", None)
        if take is not None and learnables:
            take(learnables)

    @torch.no_grad()
    def make(self, chunk: int, version: int) -> Rollouts:
        """Return the rollouts of a chunk's samples, made with the present weights. ``version``: of these weights."""
        return self.maker.make(self.env, self.policies, self.task.requests(chunk, version))


class LocalSource:
    """Source that makes each chunk in this process when it is first asked for."""

    def __init__(self, plan: RolloutPlan, worker: RolloutWorker, *, fixed: bool, staleness: int) -> None:
        """Set the plan. ``fixed``: the base model makes every rollout, so no weights are needed."""
        self.plan, self.worker, self.fixed, self.staleness = plan, worker, fixed, staleness
        self._weights: dict[int, dict[str, torch.Tensor]] = {}
        self._made: dict[int, Rollouts] = {}

    def publish(self, version: int, weights: dict[str, torch.Tensor]) -> None:
        """Keep a copy of the weights, and drop versions beyond the staleness bound."""
        self._weights[version] = {name: tensor.detach().clone() for name, tensor in weights.items()}
        oldest = version - self.staleness
        self._weights = {v: w for v, w in self._weights.items() if v >= oldest}

    def batch(self, update: int) -> list[Rollouts]:
        """Return the rollouts of an update's batch, in the plan's order."""
        retired = self.plan.retired(update)
        self._made = {c: r for c, r in self._made.items() if c >= retired}
        return [self._rollouts(chunk) for chunk in self.plan.batch_chunks(update)]

    def _rollouts(self, chunk: int) -> Rollouts:
        if chunk not in self._made:
            # A resumed run has no weights older than its checkpoint. The weights that it has are within the bound.
            version = 0 if self.fixed else max(self.plan.version(chunk), min(self._weights))
            if not self.fixed:
                self.worker.load(self._weights[version])
            self._made[chunk] = self.worker.make(chunk, version)
        return self._made[chunk]


def _with_prefix(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _without_prefix(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith((REFERENCE, LEARNABLE))}
