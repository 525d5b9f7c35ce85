"""The policy: which weights denoise at which sigma."""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch

from envs.common.checks import at_least
from envs.denoising import DenoisingProcess
from pirf_ray.diffusion.denoiser import Denoiser

Scope = Literal["tail", "all"]
TOLERANCE = 1e-6
"""Largest relative difference of two sigmas that count as equal."""


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Steps that carry gradient, and the sigmas at which the tuned weights act."""

    truncation: int = 4
    """K, the number of last steps of the sampler that carry gradient: 1 <= K <= N."""
    scope: Scope = "tail"
    """Where the tuned weights act. tail: in the last K steps, after the base model's steps. all: at every sigma, as in the paper."""

    def __post_init__(self) -> None:
        at_least(self, 1, "truncation")


DenoiserFrom = Callable[[float], Denoiser]
"""Function from the sigma at which a step starts to the denoiser of all evaluations of this step."""


class Policy:
    """Base and tuned denoiser, and the sigma at which the tuned denoiser takes over.

    - scope ``all``: the tuned weights act at every sigma.
    - scope ``tail``: the tuned weights make every step that starts at sigma <= switch_sigma. The base model makes the earlier
      steps, with all their evaluations.

    The switch is a sigma, not a step, so it means the same for every N. A sampler with fewer steps takes larger steps than
    the tuned weights learned from, and the tuned weights are wrong for larger steps. So the switch moves to the first step
    from which on no ratio sigma_i / sigma_{i+1} exceeds ``coarsest``, the largest ratio of a learned step.
    """

    def __init__(self, base: Denoiser, *, scope: Scope = "all", switch_sigma: float = 0.0, coarsest: float = math.inf) -> None:
        self.base, self.scope = base.eval().requires_grad_(False), scope
        self.switch_sigma, self.coarsest = switch_sigma, coarsest
        self.tuned = copy.deepcopy(base)

    @property
    def device(self) -> torch.device:
        """Return the device of both denoisers."""
        return next(self.base.parameters()).device

    def denoisers(self, process: DenoisingProcess) -> DenoiserFrom:
        """Return the denoiser of each step of the process."""
        first = process.sigmas[self.switch_step(process)]
        return lambda step_sigma: self.base if step_sigma > first * (1 + TOLERANCE) else self.tuned

    def base_from(self, step_sigma: float) -> Denoiser:
        """Return the base model, whatever the sigma."""
        return self.base

    def switch_step(self, process: DenoisingProcess) -> int:
        """Return the index of the first step that the tuned weights make."""
        if self.scope == "all":
            return 0
        step = next(i for i, sigma in enumerate(process.sigmas) if sigma <= self.switch_sigma * (1 + TOLERANCE))
        ratios = step_ratios(process, step)
        return step + max((i + 1 for i, ratio in enumerate(ratios) if ratio > self.coarsest * (1 + TOLERANCE)), default=0)

    def load_learned(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy tensors into the tuned denoiser by name; the other tensors stay. ValueError names a tensor that it does not have."""
        own = dict(self.tuned.network.named_parameters())
        unknown = sorted(tensors.keys() - own.keys())
        if unknown:
            raise ValueError(f"the network has no tensor {unknown[0]!r}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def to(self, device: torch.device | str) -> "Policy":
        """Move both denoisers to a device and return the policy.

        On a CPU the layout is always channels-last, the fastest. The layout changes rounding, so every process uses this layout.
        """
        on_cpu = torch.device(device).type == "cpu"
        for denoiser in (self.base, self.tuned):
            denoiser.to(device)
            if on_cpu:
                denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self


def make_policy(base: Denoiser, process: DenoisingProcess, settings: PolicySettings) -> Policy:
    """Return the policy of a base denoiser. Its tuned denoiser starts as a copy and takes over as the settings say."""
    k = settings.truncation
    return Policy(base, scope=settings.scope, switch_sigma=switch_sigma(process, k), coarsest=coarsest_step(process, k))


def switch_sigma(process: DenoisingProcess, truncation: int) -> float:
    """Return sigma_{N-K}, at which the last K steps start."""
    if not 1 <= truncation <= process.num_steps:
        raise ValueError(f"truncation must be in [1, {process.num_steps}], got {truncation}")
    return process.sigmas[process.num_steps - truncation]


def step_ratios(process: DenoisingProcess, first: int) -> list[float]:
    """Return sigma_i / sigma_{i+1} of the steps from ``first`` on. The last step, to sigma = 0, is left out."""
    return [high / low for high, low in pairwise(process.sigmas[first:-1])]


def coarsest_step(process: DenoisingProcess, truncation: int) -> float:
    """Return the largest ratio sigma_i / sigma_{i+1} of the last K steps. 0 if K = 1: only the step to sigma = 0 is learned."""
    return max(step_ratios(process, process.num_steps - truncation), default=0.0)
