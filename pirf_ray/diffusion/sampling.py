"""Sampling by the process's pure steps: the caller owns ``no_grad``. No files, no Ray."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from envs.common.checks import at_least
from envs.denoising import DenoisingProcess, Solver, State
from envs.numerics import seeding
from pirf_ray.diffusion.policy import Policy

Denoise = Callable[[torch.Tensor, float], torch.Tensor]
"""D(x; sigma)."""
DenoiserFrom = Callable[[float], Denoise]
"""The denoiser of the step that starts at the given sigma."""
Progress = Callable[[Iterable[range]], Iterable[range]]
"""Wraps the ranges of samples that are made one after another, to show how many are done."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """The sampler's steps."""

    num_steps: int = 20
    """N, steps of the sampler. Heun spends 2N-1 network evaluations."""
    solver: Solver = "heun"
    """Order of the sampler's steps: heun (2) or euler (1)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "num_steps")

    def process(self) -> DenoisingProcess:
        """Return the denoising process of these steps."""
        return DenoisingProcess(self.num_steps, self.solver)


class Sampler(Protocol):
    """Makes samples of noise."""

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        """Return samples x_0 (b, c, h, w) of standard normal noise (b, c, h, w), model units. Called without gradient."""
        ...


class PolicySampler:
    """The process's steps with a policy's denoisers."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        return finish(process, self.policy.denoisers(process), process.initial(noise))


def advance(process: DenoisingProcess, denoiser_from: DenoiserFrom, state: State, stop_step: int) -> State:
    """Return the state at the start of step ``stop_step``."""
    while state.step < stop_step:
        denoiser = denoiser_from(process.sigmas[state.step])
        x, sigma = process.observe(state)
        state = process.transition(state, denoiser(x, sigma))
    return state


def finish(process: DenoisingProcess, denoiser_from: DenoiserFrom, state: State) -> torch.Tensor:
    """Return the sample x_0 (b, c, h, w) from any state."""
    return advance(process, denoiser_from, state, process.num_steps).x


def noise_batches(
    shape: tuple[int, int, int],
    *,
    seed: int,
    stream: str,
    sample_ids: Sequence[int],
    batch: int,
    device: torch.device,
    progress: Progress,
) -> Iterable[torch.Tensor]:
    """Yield standard normal noise (b, c, h, w) of the named samples, ``batch`` at a time; a sample's noise depends on its id alone."""
    for ids in progress(list(seeding.chunks(len(sample_ids), batch))):
        yield seeding.normal(seed, stream, [sample_ids[i] for i in ids], shape).float().to(device)
