"""Prefixes: the states before the last K steps, made without gradient, and their replay with gradient. No Ray."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np
import torch

import envs  # noqa: F401  (registers the environments)
from envs.denoising import DenoisingProcess, State
from envs.environments import DenoisingVectorEnv
from envs.rewards.base import RewardOutput
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import SamplerSettings, finish


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """State before the last K steps, float32. The learner needs nothing else to replay these steps.

    A prefix travels between processes as numpy arrays, which Ray sends without a copy. The receiver gets its own tensors.
    """

    x: torch.Tensor
    """State (b, c, h, w), model units."""
    step: int
    """Step that starts from the state, N - K."""
    sample_ids: tuple[int, ...]
    """Ids of the samples, which decide their noise."""
    policy_version: int
    """Version of the weights that made the prefix."""
    base_output: torch.Tensor | None
    """Samples x_0 (b, c, h, w) of the base model from the same state, for the output anchor."""

    def __getstate__(self) -> dict[str, Any]:
        return {k: v.cpu().numpy() if isinstance(v, torch.Tensor) else v for k, v in vars(self).items()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            own = torch.from_numpy(value.copy()) if isinstance(value, np.ndarray) else value
            object.__setattr__(self, name, own)

    def select(self, rows: slice) -> "Prefix":
        """Return the prefix of some of the samples."""
        return Prefix(
            x=self.x[rows],
            step=self.step,
            sample_ids=self.sample_ids[rows],
            policy_version=self.policy_version,
            base_output=None if self.base_output is None else self.base_output[rows],
        )


def join(prefixes: Sequence[Prefix], device: torch.device | str) -> Prefix:
    """Return several prefixes as one prefix on a device. Its version is the oldest version among them."""
    outputs = [p.base_output for p in prefixes if p.base_output is not None]
    return Prefix(
        x=torch.cat([p.x for p in prefixes]).to(device),
        step=prefixes[0].step,
        sample_ids=tuple(i for p in prefixes for i in p.sample_ids),
        policy_version=min(p.policy_version for p in prefixes),
        base_output=torch.cat(outputs).to(device) if len(outputs) == len(prefixes) else None,
    )


def replay(process: DenoisingProcess, policy: Policy, x: torch.Tensor, step: int) -> torch.Tensor:
    """Return the samples x_0 (b, c, h, w) from the state x at the start of ``step``, with every evaluation on the autograd graph."""
    return finish(process, policy.denoisers(process), State(x=x, step=step))


@dataclass(frozen=True, kw_only=True)
class PrefixTask:
    """Description of the prefixes to make: the PDE, the steps, the noise, the samples made at once."""

    env: str
    """Env id of the PDE, as registered with Gymnasium."""
    resolution: int
    """Rows and columns of the fields."""
    sampler: SamplerSettings
    """Settings of the sampler."""
    stop_step: int
    """Step before which a prefix ends, N - K."""
    seed: int
    """Seed of the noise."""
    chunk: int
    """Samples made at once."""
    with_base_output: bool
    """Whether the base model finishes each prefix, for the output anchor."""
    parameters: dict[str, float] = field(default_factory=dict)
    """Parameters of the PDE, such as the Reynolds number."""

    def make_env(self, device: str = "cpu") -> DenoisingVectorEnv:
        """Return the environment of ``gymnasium.make_vec`` without a reward. TypeError if another class is registered."""
        arguments: dict[str, Any] = {
            "resolution": self.resolution,
            "num_steps": self.sampler.num_steps,
            "solver": self.sampler.solver,
            "device": device,
            "reward": NoReward(),
            **self.parameters,
        }
        env = gymnasium.make_vec(f"envs:{self.env}", num_envs=self.chunk, **arguments)
        if not isinstance(env, DenoisingVectorEnv):
            raise TypeError(f"{self.env} is registered with {type(env).__name__}, expected a DenoisingVectorEnv")
        return env


class NoReward:
    """Reward 0. Prefixes are not rewarded, so their episodes compute no residual."""

    differentiable = True
    per_sample = True

    def __call__(self, fields: torch.Tensor) -> RewardOutput:
        """Return 0 for each of the fields (b, c, h, w)."""
        return RewardOutput(reward=fields.new_zeros(len(fields)), violations={})


def step_until(env: DenoisingVectorEnv, policy: Policy, stop_step: int) -> State:
    """Step the environment with the policy to the start of step ``stop_step``, and return the state."""
    denoiser_from = policy.denoisers(env.process)
    while env.state.step < stop_step:
        denoiser = denoiser_from(env.process.sigmas[env.state.step])
        x, sigma = env.process.observe(env.state)
        env.step(denoiser(x, sigma))
    return env.state


@torch.no_grad()
def make_prefix(
    env: DenoisingVectorEnv,
    policy: Policy,
    *,
    seed: int,
    stream: str,
    sample_ids: Sequence[int],
    stop_step: int,
    policy_version: int,
    with_base_output: bool,
) -> Prefix:
    """Return the prefix of an episode that stops at ``stop_step``.

    With ``with_base_output`` the base model finishes the samples as well.
    """
    env.reset(seed=seed, options={"sample_ids": sample_ids, "stream": stream})
    state = step_until(env, policy, stop_step)
    base_output = finish(env.process, policy.base_from, state) if with_base_output else None
    return Prefix(
        x=state.x,
        step=stop_step,
        sample_ids=tuple(sample_ids),
        policy_version=policy_version,
        base_output=base_output,
    )
