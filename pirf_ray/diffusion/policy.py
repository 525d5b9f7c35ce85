"""The policy: which weights denoise at which sigma."""

import copy
import math
from dataclasses import dataclass
from functools import partial
from itertools import chain, pairwise
from typing import Literal

import torch

from envs.common.checks import at_least
from envs.denoising import DenoiserFrom, DenoisingProcess, State
from envs.numerics.conditions import Condition
from pirf_ray.diffusion.denoiser import AbstractDenoiser

Scope = Literal["tail", "all"]
TOLERANCE = 1e-6
"""Largest relative difference of two sigmas that count as equal."""


@dataclass(frozen=True, kw_only=True)
class PolicySettings:
    """Steps that carry gradient, and the sigmas at which the tuned weights act."""

    truncation: int = 4
    """K, the number of last steps of the sampler that learn: 1 <= K <= N. 0: all N steps."""
    scope: Scope = "tail"
    """Where the tuned weights act. tail: in the last K steps, after the base model's steps. all: at every sigma, as in the paper."""

    def __post_init__(self) -> None:
        at_least(self, 0, "truncation")

    def steps(self, num_steps: int) -> int:
        """Return K of a sampler with N steps."""
        return self.truncation or num_steps


class Policy:
    """Base and tuned denoiser, and the sigma at which the tuned denoiser takes over.

    - scope ``all``: the tuned weights act at every sigma.
    - scope ``tail``: the tuned weights make every step that starts at sigma <= switch_sigma. The base model makes the earlier
      steps, with all their evaluations.

    The switch is a sigma, not a step, so it means the same for every N. A sampler with fewer steps takes larger steps than
    the tuned weights learned from, and the tuned weights are wrong for larger steps. So the switch moves to the first step
    from which on no ratio sigma_i / sigma_{i+1} exceeds ``coarsest``, the largest ratio of a learned step.

    In a stochastic process the base model makes the step to sigma = 0. This step has no density, so no objective with log
    densities could train it.
    """

    def __init__(
        self,
        base: AbstractDenoiser,
        *,
        tuned: AbstractDenoiser | None = None,
        scope: Scope = "all",
        switch_sigma: float = 0.0,
        coarsest: float = math.inf,
    ) -> None:
        """Set the denoisers. ``tuned``: by default a copy of the base model."""
        self.base, self.scope = base.eval().requires_grad_(False), scope
        self.switch_sigma, self.coarsest = switch_sigma, coarsest
        self.tuned = copy.deepcopy(base) if tuned is None else tuned.eval()

    @property
    def device(self) -> torch.device:
        """Return the device of both denoisers."""
        tensors = chain(self.base.parameters(), self.base.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def initial(self, process: DenoisingProcess, noise: torch.Tensor, condition: Condition | None = None) -> State:
        """Return the first state from standard normal noise (b, c, h, w). A tuned denoiser may draw other first noise."""
        return process.initial(self.tuned.first_noise(noise, condition) if self.scope == "all" else noise)

    def denoisers(self, process: DenoisingProcess, condition: Condition | None = None) -> DenoiserFrom:
        """Return the denoiser of each step of the process, from the sigma at which the step starts."""
        first = process.sigmas[self.switch_step(process)] * (1 + TOLERANCE)
        last = process.sigmas[-2] * (1 + TOLERANCE) if process.stochastic else -math.inf

        def denoiser_from(step_sigma: float) -> AbstractDenoiser:
            return self.base if step_sigma > first or step_sigma <= last else self.tuned

        if condition is None:
            return denoiser_from
        return lambda step_sigma: partial(denoiser_from(step_sigma), condition=condition)

    def base_from(self, step_sigma: float) -> AbstractDenoiser:
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
        own = self.tuned.tensors()
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


def make_policy(
    base: AbstractDenoiser, process: DenoisingProcess, settings: PolicySettings, tuned: AbstractDenoiser | None = None
) -> Policy:
    """Return the policy of a base denoiser, whose tuned denoiser takes over as the settings say.

    ``tuned``: a copy of the base model, perhaps with parts attached (pirf_ray.learning.parameters); by default a plain copy.
    """
    k = settings.steps(process.num_steps)
    first, coarsest = switch_sigma(process, k), coarsest_step(process, k)
    return Policy(base, tuned=tuned, scope=settings.scope, switch_sigma=first, coarsest=coarsest)


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
