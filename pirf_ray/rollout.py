"""Rollouts without gradient: prefixes for the learner, finished samples for everyone else. No Ray."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import gymnasium
import torch

import envs  # noqa: F401  (registers the environments)
from envs import seeding
from envs.denoising import DenoisingProcess, Solver, State
from envs.environments import DenoisingVectorEnv
from envs.rewards import RewardOutput
from pirf_ray.policy import Policy


@dataclass(frozen=True, kw_only=True)
class Prefix:
    """The state before the last K steps, float32: all that the learner needs to replay them."""

    x: torch.Tensor
    """(b, c, h, w), model units."""
    step: int
    """N - K."""
    sample_ids: tuple[int, ...]
    """Whose noise it started from."""
    policy_version: int
    """Version of the weights that made it."""
    base_output: torch.Tensor | None
    """x_0 of the base model from the same state (b, c, h, w), for the output anchor."""


BASE_CORRECTED = "base corrected"
"""The base model's samples after the tuned ones' correction: what the learned weights add is beside it."""


class ZeroReward:
    """Reward of an episode whose reward nobody reads: sampling and prefixes need no residual."""

    differentiable = True
    per_sample = True

    def __call__(self, fields: torch.Tensor) -> RewardOutput:
        return RewardOutput(reward=fields.new_zeros(len(fields)), violations={})


def make_env(
    env_id: str, *, num_envs: int, resolution: int, num_steps: int, solver: Solver, device: str = "cpu"
) -> DenoisingVectorEnv:
    """The environment that ``gymnasium.make_vec`` gives a user."""
    env = gymnasium.make_vec(
        f"envs:{env_id}",
        num_envs=num_envs,
        resolution=resolution,
        num_steps=num_steps,
        solver=solver,
        device=device,
        reward=ZeroReward(),
    )
    if not isinstance(env, DenoisingVectorEnv):
        raise TypeError(f"{env_id} is registered with {type(env).__name__}, expected a DenoisingVectorEnv")
    return env


def step_until(env: DenoisingVectorEnv, policy: Policy, stop_step: int) -> State:
    """Step the environment with the policy up to the start of step ``stop_step``."""
    denoiser_from = policy.denoisers(env.process)
    while env.state.step < stop_step:
        denoiser = denoiser_from(env.process.sigmas[env.state.step])
        x, sigma = env.process.observe(env.state)
        env.step(denoiser(x, sigma))
    return env.state


Denoise = Callable[[torch.Tensor, float], torch.Tensor]
"""D(x; sigma)."""
DenoiserFrom = Callable[[float], Denoise]
"""The denoiser of the step that starts at the given sigma."""


def advance(process: DenoisingProcess, denoiser_from: DenoiserFrom, state: State, stop_step: int) -> State:
    """The state at the start of step ``stop_step``, by the pure transitions; the caller owns ``no_grad``."""
    while state.step < stop_step:
        denoiser = denoiser_from(process.sigmas[state.step])
        x, sigma = process.observe(state)
        state = process.transition(state, denoiser(x, sigma))
    return state


def finish(process: DenoisingProcess, denoiser_from: DenoiserFrom, state: State) -> torch.Tensor:
    """Sample x_0 (b, c, h, w) from any state."""
    return advance(process, denoiser_from, state, process.num_steps).x


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
    """Run an episode up to ``stop_step``; with ``with_base_output`` the base model then finishes it."""
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


@torch.no_grad()
def generate(
    policy: Policy,
    process: DenoisingProcess,
    *,
    shape: tuple[int, int, int],
    seed: int,
    stream: str,
    sample_ids: Sequence[int],
    batch: int = 64,
    progress: Callable[[Iterable[range]], Iterable[range]] = iter,
    groups: Sequence[str] = ("base", "tuned"),
    correction: Callable[[torch.Tensor], torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Samples {"base", "tuned"} (len(sample_ids), c, h, w) in model units from the same noise.

    The steps that both share (the prefix, with scope ``tail``) are made once. ``correction`` is applied to the tuned ones,
    and to the base's under the name "base corrected" if that is among the groups.
    """
    device = next(policy.base.parameters()).device
    shared = policy.switch_step(process)
    chosen: dict[str, DenoiserFrom] = {"base": policy.base_from, "tuned": policy.denoisers(process)}
    if correction is None and BASE_CORRECTED in groups:
        raise ValueError(f"{BASE_CORRECTED} samples need a correction")
    outputs: dict[str, list[torch.Tensor]] = {name: [] for name in groups}
    for ids in progress(list(seeding.chunks(len(sample_ids), batch))):
        noise = seeding.normal(seed, stream, [sample_ids[i] for i in ids], shape)
        state = process.initial(noise.float().to(device))
        state = advance(process, policy.base_from, state, shared)
        for name, parts in outputs.items():
            x = finish(process, chosen[name.split()[0]], state)
            parts.append((x if correction is None or name == "base" else correction(x)).cpu())
    return {name: torch.cat(parts) for name, parts in outputs.items()}
