"""The rollout seam: what actors make for the learner, in one environment, without gradient.

>>> import torch
>>> from pirf_ray.learning.rollouts.records import Sample
>>> class Zeros:
...     makes, rewarded, uses_policy = Sample, True, False
...     def make(self, env, policies, requests):
...         x = torch.zeros(len(requests.sample_ids), *env.pde.shape)
...         out = env.reward(env.pde.normalizer.to_physical(x))
...         return Sample(sample_ids=requests.sample_ids, groups=requests.groups, x=x, reward=out.reward)
...     def cost(self, process):
...         return 0.0
"""

from dataclasses import dataclass
from typing import Any, Protocol

from envs.common.parts import PartRegistry
from envs.denoising import DenoisingProcess, State
from envs.environments import DenoisingVectorEnv
from envs.numerics import seeding
from envs.numerics.conditions import Condition
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.rollouts.records import Rollouts


@dataclass(frozen=True, kw_only=True)
class Requests:
    """Samples to make: a pure function of the settings and the chunk."""

    sample_ids: tuple[int, ...]
    """Ids of the samples."""
    groups: tuple[int, ...]
    """Group of each sample. A chunk holds whole groups."""
    seed: int
    """Seed of the noise."""
    stream: str
    """Random stream of the noise."""
    version: int
    """Version of the weights that make the samples."""
    condition: Condition | None = None
    """Condition of each sample."""


@dataclass(frozen=True, kw_only=True)
class MakerContext:
    """What a maker knows of the training."""

    stop_step: int
    """Step before which a prefix ends, N - K."""
    with_base_output: bool = False
    """Whether a regularizer needs the base model's output of each prefix."""


class RolloutMaker(Protocol):
    """Maker of the rollouts of one chunk, on an actor or in this process. It is made with (settings, context)."""

    makes: type[Rollouts]
    """Kind of the rollouts."""
    rewarded: bool
    """Whether the rollouts carry rewards. Otherwise the environment has none."""
    uses_policy: bool
    """Whether a policy makes them. Otherwise they never go stale."""

    def make(self, env: DenoisingVectorEnv, policies: Policies, requests: Requests) -> Rollouts:
        """Return the rollouts. ``policies.tuned`` is the behaviour policy, ``policies.base`` the reference."""
        ...

    def cost(self, process: DenoisingProcess) -> float:
        """Return the network forwards per sample."""
        ...


MAKERS: PartRegistry[RolloutMaker] = PartRegistry("maker", RolloutMaker)
"""Makers by name."""
register = MAKERS.register


def begin(env: DenoisingVectorEnv, policies: Policies, requests: Requests) -> State:
    """Reset the environment to the first state of the requested samples, and return the state."""
    options: dict[str, Any] = {
        "sample_ids": requests.sample_ids,
        "stream": requests.stream,
        "condition": requests.condition,
    }
    if policies.tuned.tuned.draws_first_noise:
        noise = seeding.normal(requests.seed, requests.stream, requests.sample_ids, env.pde.shape)
        options["state"] = policies.tuned.initial(env.process, noise.to(env.device, env.dtype), requests.condition)
    env.reset(seed=requests.seed, options=options)
    return env.state
