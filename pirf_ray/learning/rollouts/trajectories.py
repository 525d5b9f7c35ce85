"""Trajectories: whole chains with the log densities of their stochastic steps and the reward of their end."""

from dataclasses import dataclass

import torch

from envs.common.parts import PartSettings
from envs.denoising import DenoisingProcess, State
from envs.environments import DenoisingVectorEnv
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.rollouts.base import MakerContext, Requests, begin, register
from pirf_ray.learning.rollouts.records import Trajectory
from pirf_ray.learning.rollouts.samples import outcome


@dataclass(frozen=True, kw_only=True)
class TrajectorySettings(PartSettings):
    """Settings of trajectories."""

    reference_densities: bool = True
    """Whether the reference's mean and log density of each step are made too. They cost one more evaluation per step."""


@register("trajectories")
class TrajectoryMaker:
    """Whole chains with log densities and rewards, one chain per sample."""

    Settings = TrajectorySettings
    makes = Trajectory
    rewarded = True
    uses_policy = True

    def __init__(self, settings: TrajectorySettings, context: MakerContext) -> None:
        self.settings = settings

    def make(self, env: DenoisingVectorEnv, policies: Policies, requests: Requests) -> Trajectory:
        """Return the chains of the behaviour policy."""
        process, condition = env.process, requests.condition
        denoiser_from = policies.tuned.denoisers(process, condition)
        base_from = policies.base.denoisers(process, condition)
        made, finished = _Nodes(begin(env, policies, requests)), None
        while not process.terminal(env.state):
            state = env.state
            x, sigma = process.observe(state)
            denoised = denoiser_from(process.sigmas[state.step])(x, sigma)
            with_density = process.has_density(state.step)
            based = None
            if with_density and self.settings.reference_densities:
                based = base_from(process.sigmas[state.step])(x, sigma)
            finished = env.step(denoised)
            if env.state.step > state.step:  # Heun's predictor is inside a step
                made.add(process, state, env.state, denoised if with_density else None, based)
        reward, parts = outcome(finished)
        return made.trajectory(requests, reward, parts, with_base=self.settings.reference_densities)

    def cost(self, process: DenoisingProcess) -> float:
        """Return the evaluations of an episode, and of the reference at each stochastic step."""
        densities = sum(process.has_density(step) for step in range(process.num_steps))
        return process.num_evaluations + (densities if self.settings.reference_densities else 0)


class _Nodes:
    """Nodes of chains, in the order in which they are made."""

    def __init__(self, root: State) -> None:
        zero = root.x.new_zeros(len(root.x))
        self.x, self.mean, self.base_mean = [root.x], [root.x], [root.x]
        self.log_density, self.base_log_density = [zero], [zero]

    def add(
        self, process: DenoisingProcess, before: State, after: State, denoised: torch.Tensor | None, based: torch.Tensor | None
    ) -> None:
        """Add the state after a step. ``denoised`` and ``based``: of the behaviour policy and the reference, if it has a density."""
        zero = after.x.new_zeros(len(after.x))
        law = None if denoised is None else process.step_law(before, denoised)
        base_law = None if based is None else process.step_law(before, based)
        self.x.append(after.x)
        self.mean.append(law.mean if law else after.x)
        self.log_density.append(law.log_density(after.x) if law else zero)
        self.base_mean.append(base_law.mean if base_law else after.x)
        self.base_log_density.append(base_law.log_density(after.x) if base_law else zero)

    def trajectory(
        self, requests: Requests, reward: torch.Tensor, parts: dict[str, torch.Tensor], *, with_base: bool
    ) -> Trajectory:
        """Return the chains with the rewards (b,) of their ends."""
        last = len(self.x) - 1
        return Trajectory(
            sample_ids=requests.sample_ids,
            groups=requests.groups,
            policy_version=requests.version,
            condition=requests.condition,
            x=torch.stack(self.x),
            steps=tuple(range(last + 1)),
            parents=tuple(range(-1, last)),
            leaves=(last,),
            mean=torch.stack(self.mean),
            log_density=torch.stack(self.log_density),
            reward=reward[None],
            parts={name: value[None] for name, value in parts.items()},
            base_mean=torch.stack(self.base_mean) if with_base else None,
            base_log_density=torch.stack(self.base_log_density) if with_base else None,
        )
