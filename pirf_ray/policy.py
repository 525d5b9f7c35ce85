"""The policy: which weights denoise at which sigma."""

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from typing import Literal

import torch

from envs.denoising import DenoisingProcess
from pirf_ray.denoiser import Denoiser

Scope = Literal["tail", "all"]
TOLERANCE = 1e-6
"""Relative: sigmas that differ by less are the same."""


DenoiserFrom = Callable[[float], Denoiser]
"""The denoiser of every evaluation of the step that starts at the given sigma."""


class Policy:
    """Base and tuned denoiser, and the sigma at which the tuned one takes over.

    ``all``: tuned weights at every sigma. ``tail``: tuned weights in the last steps, those from sigma <= switch_sigma on, the
    base model before, the corrector that ends the last earlier step included. Kept as a sigma, not as a step, the switch means
    the same at N = 20 and 40. A sampler with fewer steps takes larger ones there than were learned from, and what makes small
    steps exact makes those wrong (at N = 10 the residual of Kolmogorov flow was 20 times the base model's): the tuned weights
    wait until all steps that are left are at most ``coarsest``, the ratio of sigmas that a learned step goes down by.
    """

    def __init__(self, base: Denoiser, *, scope: Scope = "all", switch_sigma: float = 0.0, coarsest: float = math.inf) -> None:
        self.base, self.scope = base.eval().requires_grad_(False), scope
        self.switch_sigma, self.coarsest = switch_sigma, coarsest
        self.tuned = copy.deepcopy(base)

    def denoisers(self, process: DenoisingProcess) -> DenoiserFrom:
        """Who makes each of the process's steps."""
        first = process.sigmas[self.switch_step(process)]
        return lambda step_sigma: self.base if step_sigma > first * (1 + TOLERANCE) else self.tuned

    def base_from(self, step_sigma: float) -> Denoiser:
        """The base model, whatever the sigma."""
        return self.base

    def switch_step(self, process: DenoisingProcess) -> int:
        """First step that the tuned weights make."""
        if self.scope == "all":
            return 0
        step = next(i for i, sigma in enumerate(process.sigmas) if sigma <= self.switch_sigma * (1 + TOLERANCE))
        ratios = step_ratios(process, step)
        return step + max((i + 1 for i, ratio in enumerate(ratios) if ratio > self.coarsest * (1 + TOLERANCE)), default=0)

    def load_learned(self, tensors: dict[str, torch.Tensor]) -> None:
        """Copy (part of) the network's tensors into the tuned denoiser."""
        own = dict(self.tuned.network.named_parameters())
        unknown = sorted(tensors.keys() - own.keys())
        if unknown:
            raise ValueError(f"the network has no tensor {unknown[0]!r}")
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def to(self, device: torch.device | str) -> "Policy":
        """Move both denoisers, in the memory layout that is fastest there: one layout, since it changes rounding."""
        on_cpu = torch.device(device).type == "cpu"
        for denoiser in (self.base, self.tuned):
            denoiser.to(device)
            if on_cpu:
                denoiser.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return self


def switch_sigma(process: DenoisingProcess, truncation: int) -> float:
    """sigma_{N-K}: where the last K steps start."""
    if not 1 <= truncation <= process.num_steps:
        raise ValueError(f"truncation must be in [1, {process.num_steps}], got {truncation}")
    return process.sigmas[process.num_steps - truncation]


def step_ratios(process: DenoisingProcess, first: int) -> list[float]:
    """sigma_i / sigma_{i+1} of the steps from ``first`` on; not of the last one, which goes to 0 at every N."""
    return [high / low for high, low in pairwise(process.sigmas[first:-1])]


def coarsest_step(process: DenoisingProcess, truncation: int) -> float:
    """The largest ratio among the last K steps; 0 where K = 1: only the step to 0 is learned."""
    return max(step_ratios(process, process.num_steps - truncation), default=0.0)
