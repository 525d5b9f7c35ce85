"""Replay of the last K steps with gradient: the objective's forward pass. No Ray."""

import torch

from envs.denoising import DenoisingProcess, State
from pirf_ray.policy import Policy
from pirf_ray.rollout import finish


def replay(process: DenoisingProcess, policy: Policy, x: torch.Tensor, step: int) -> torch.Tensor:
    """x_0 (b, c, h, w) from the state x at the start of ``step``, every later evaluation on the autograd graph."""
    return finish(process, policy.denoisers(process), State(x=x, step=step))
