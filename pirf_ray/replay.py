"""Replay of the last K steps with gradient: the objective's forward pass. No Ray."""

from dataclasses import dataclass

import torch

from envs.denoising import DenoisingProcess, State
from envs.pdes import PDE
from envs.rewards import Reward, RewardOutput
from pirf_ray.policy import Policy
from pirf_ray.regularization import output_anchor
from pirf_ray.rollout import Prefix, finish


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Loss terms of a replayed batch, per sample (b,), and what they were computed from."""

    x: torch.Tensor
    reward: RewardOutput
    anchor: torch.Tensor | None


def replay(process: DenoisingProcess, policy: Policy, x: torch.Tensor, step: int) -> torch.Tensor:
    """x_0 (b, c, h, w) from the state x at the start of ``step``, every later evaluation on the autograd graph."""
    return finish(process, policy.denoiser_from, State(x=x, step=step))


def replay_rewards(
    process: DenoisingProcess,
    policy: Policy,
    reward: Reward,
    pde: PDE,
    prefix: Prefix,
    *,
    anchored: bool,
    input_weight: float = 1.0,
) -> Replayed:
    """Replay a prefix and reward the finished samples. If anchored: needs ``prefix.base_output``, ``input_weight`` as there."""
    x = replay(process, policy, prefix.x, prefix.step)
    anchor = None
    if anchored:
        if prefix.base_output is None:
            raise ValueError("the output anchor needs the base model's output of each prefix")
        anchor = output_anchor(x, prefix.base_output, pde.input_channels, input_weight)
    return Replayed(x=x, reward=reward(pde.normalizer.to_physical(x)), anchor=anchor)
