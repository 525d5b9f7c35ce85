"""Finished samples with their rewards."""

from typing import Any

import torch

from envs.common.parts import PartSettings
from envs.denoising import DenoisingProcess
from envs.environments import DenoisingVectorEnv
from envs.numerics.conditions import Condition, select
from envs.rewards.base import Reward, RewardOutput, Scope
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.rollouts.base import MakerContext, Requests, begin, register
from pirf_ray.learning.rollouts.records import Sample


@register("samples")
class SampleMaker:
    """Finished samples with rewards, for objectives that need no chain."""

    makes = Sample
    rewarded = True
    uses_policy = True

    def __init__(self, settings: PartSettings, context: MakerContext) -> None:
        pass

    def make(self, env: DenoisingVectorEnv, policies: Policies, requests: Requests) -> Sample:
        """Return the samples of the behaviour policy."""
        begin(env, policies, requests)
        denoiser_from, finished = policies.tuned.denoisers(env.process, requests.condition), None
        while not env.process.terminal(env.state):
            finished = env.step(denoiser_from(env.process.sigmas[env.state.step])(*env.process.observe(env.state)))
        reward, parts = outcome(finished)
        return Sample(
            sample_ids=requests.sample_ids,
            groups=requests.groups,
            policy_version=requests.version,
            condition=requests.condition,
            x=env.state.x,
            reward=reward,
            parts=parts,
        )

    def cost(self, process: DenoisingProcess) -> float:
        """Return the evaluations of an episode."""
        return process.num_evaluations


def outcome(finished: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Return the rewards (b,) of an episode's last step, and their parts and violations by name.

    A violation keeps its name; a part with the same name gives way.
    """
    _, reward, _, _, info = finished
    return reward.detach(), {name: value.detach() for name, value in {**info["parts"], **info["violations"]}.items()}


class GroupedReward:
    """Reward of sets, asked for one group of consecutive samples at a time."""

    scope: Scope = "set"

    def __init__(self, reward: Reward, group: int) -> None:
        self.reward, self.group, self.differentiable = reward, group, reward.differentiable

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        """Return the rewards (b,) of fields (b, c, h, w); b is a multiple of the group."""
        rows = [slice(start, start + self.group) for start in range(0, len(fields), self.group)]
        outs = [self.reward(fields[own], select(condition, own)) for own in rows]
        return RewardOutput(
            reward=torch.cat([out.reward for out in outs]),
            parts={name: torch.cat([out.parts[name] for out in outs]) for name in outs[0].parts},
            violations={name: torch.cat([out.violations[name] for out in outs]) for name in outs[0].violations},
        )
