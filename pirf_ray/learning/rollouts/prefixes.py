"""Prefixes: the states before the last K steps, and their replay with gradient."""

import torch

from envs.common.parts import PartSettings
from envs.denoising import DenoisingProcess, State
from envs.environments import DenoisingVectorEnv
from envs.numerics.conditions import Condition
from pirf_ray.diffusion.policies import Policies
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import finish
from pirf_ray.learning.rollouts.base import MakerContext, Requests, begin, register
from pirf_ray.learning.rollouts.records import Prefix


@register("prefixes")
class PrefixMaker:
    """States before the last K steps, for objectives that replay these steps with gradient."""

    makes = Prefix
    rewarded = False
    uses_policy = True

    def __init__(self, settings: PartSettings, context: MakerContext) -> None:
        self.stop_step, self.with_base_output = context.stop_step, context.with_base_output

    def make(self, env: DenoisingVectorEnv, policies: Policies, requests: Requests) -> Prefix:
        """Return the prefixes, and the base model's outputs from them if a regularizer needs these."""
        begin(env, policies, requests)
        state = step_until(env, policies.tuned, self.stop_step, requests.condition)
        policy = policies.tuned
        return Prefix(
            sample_ids=requests.sample_ids,
            groups=requests.groups,
            policy_version=requests.version,
            condition=requests.condition,
            x=state.x,
            step=self.stop_step,
            previous=state.previous,
            base_output=finish(env.process, policy.base_from, state) if self.with_base_output else None,
        )

    def cost(self, process: DenoisingProcess) -> float:
        """Return the evaluations of the first N - K steps, and of the last K steps for the base model's output."""
        last = process.evaluations_from(self.stop_step)
        return process.num_evaluations - (0 if self.with_base_output else last)


def step_until(env: DenoisingVectorEnv, policy: Policy, stop_step: int, condition: Condition | None = None) -> State:
    """Step the environment with the policy to the start of step ``stop_step``, and return the state."""
    denoiser_from = policy.denoisers(env.process, condition)
    while env.state.step < stop_step:
        denoiser = denoiser_from(env.process.sigmas[env.state.step])
        env.step(denoiser(*env.process.observe(env.state)))
    return env.state


def replay(process: DenoisingProcess, policy: Policy, prefix: Prefix) -> torch.Tensor:
    """Return the samples x_0 (b, c, h, w) of prefixes, with every evaluation on the autograd graph.

    The process must be deterministic.
    """
    return finish(process, policy.denoisers(process, prefix.condition), prefix.state)
