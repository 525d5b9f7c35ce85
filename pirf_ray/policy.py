"""The policy: which weights denoise at which sigma."""

import copy
from typing import Literal

import torch

from envs.denoising import DenoisingProcess
from pirf_ray.denoiser import Denoiser

Scope = Literal["tail", "all"]


class Policy:
    """Base and tuned denoiser, and the sigma at which the tuned one takes over.

    ``all``: tuned weights at every sigma. ``tail``: tuned weights in the steps that start at sigma <= switch_sigma, the
    base model before, the corrector that ends the last earlier step included. Kept as a sigma, not as a step, the
    switch means the same at N = 10, 20 and 40.
    """

    def __init__(self, base: Denoiser, *, scope: Scope = "all", switch_sigma: float = 0.0) -> None:
        self.base, self.scope, self.switch_sigma = base.eval().requires_grad_(False), scope, switch_sigma
        self.tuned = copy.deepcopy(base)

    def denoiser_from(self, step_sigma: float) -> Denoiser:
        """The denoiser of every evaluation of the step that starts at ``step_sigma``."""
        if self.scope == "tail" and step_sigma > self.switch_sigma * (1 + 1e-6):
            return self.base
        return self.tuned

    def base_from(self, step_sigma: float) -> Denoiser:
        """The base model, whatever the sigma."""
        return self.base

    def switch_step(self, process: DenoisingProcess) -> int:
        """First step that the tuned weights make."""
        return next(i for i, s in enumerate(process.sigmas) if s == 0 or self.denoiser_from(s) is self.tuned)

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
