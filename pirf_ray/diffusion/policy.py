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
"""Largest relative difference of two sigmas that count as the same."""


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Where the tuned weights act."""

    truncation: int = 4
    """K, the last steps of the sampler that carry gradient: 1 <= K <= N."""
    scope: Scope = "tail"
    """Where the tuned weights act: in the last K steps with the base model before them (tail), or at every sigma (all, the paper's)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "truncation")


DenoiserFrom = Callable[[float], Denoiser]
"""The denoiser of every evaluation of the step that starts at the given sigma."""


class Policy:
    """Base and tuned denoiser, and the sigma at which the tuned denoiser takes over.

    ``all``: the tuned weights act at every sigma. ``tail``: they act in the last steps, from sigma <= switch_sigma on. The
    base model makes the earlier steps, the corrector that ends the last of them included. The switch is a sigma, not a step,
    so that it means the same at N = 20 and 40. A sampler with fewer steps takes larger ones than the weights learned from,
    and the tuned weights are wrong there (at N = 10 the residual of Kolmogorov flow was 20 times the base model's). So the
    tuned weights wait until all steps that are left are at most ``coarsest``, the largest ratio of sigmas of a learned step.
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
        """Return the denoiser of each of the process's steps."""
        first = process.sigmas[self.switch_step(process)]
        return lambda step_sigma: self.base if step_sigma > first * (1 + TOLERANCE) else self.tuned

    def base_from(self, step_sigma: float) -> Denoiser:
        """Return the base model, whatever the sigma."""
        return self.base

    def switch_step(self, process: DenoisingProcess) -> int:
        """Return the first step that the tuned weights make."""
        if self.scope == "all":
            return 0
        step = next(i for i, sigma in enumerate(process.sigmas) if sigma <= self.switch_sigma * (1 + TOLERANCE))
        ratios = step_ratios(process, step)
        return step + max((i + 1 for i, ratio in enumerate(ratios) if ratio > self.coarsest * (1 + TOLERANCE)), default=0)

    def load_learned(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy (part of) the network's tensors into the tuned denoiser. ValueError names a tensor that the network has not."""
        own = dict(self.tuned.network.named_parameters())
        unknown = sorted(tensors.keys() - own.keys())
        if unknown:
            raise ValueError(f"the network has no tensor {unknown[0]!r}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def to(self, device: torch.device | str) -> "Policy":
        """Move both denoisers, in the memory layout that is fastest there. It is one layout, since it changes rounding."""
        on_cpu = torch.device(device).type == "cpu"
        for denoiser in (self.base, self.tuned):
            denoiser.to(device)
            if on_cpu:
                denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self


def make_policy(base: Denoiser, process: DenoisingProcess, settings: PolicySettings) -> Policy:
    """Return the policy of a base denoiser; its tuned denoiser is equal at first and takes over where the settings say."""
    k = settings.truncation
    return Policy(base, scope=settings.scope, switch_sigma=switch_sigma(process, k), coarsest=coarsest_step(process, k))


def switch_sigma(process: DenoisingProcess, truncation: int) -> float:
    """Return sigma_{N-K}, where the last K steps start."""
    if not 1 <= truncation <= process.num_steps:
        raise ValueError(f"truncation must be in [1, {process.num_steps}], got {truncation}")
    return process.sigmas[process.num_steps - truncation]


def step_ratios(process: DenoisingProcess, first: int) -> list[float]:
    """Return sigma_i / sigma_{i+1} of the steps from ``first`` on, without the last step, which goes to 0 at every N."""
    return [high / low for high, low in pairwise(process.sigmas[first:-1])]


def coarsest_step(process: DenoisingProcess, truncation: int) -> float:
    """Return the largest ratio among the last K steps; 0 where K = 1, which learns the step to 0 only."""
    return max(step_ratios(process, process.num_steps - truncation), default=0.0)
