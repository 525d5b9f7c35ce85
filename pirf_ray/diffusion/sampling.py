"""Sampling by the pure steps of the denoising process. The caller owns ``no_grad``. No files, no Ray."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from envs.common.checks import at_least
from envs.denoising import DenoisingProcess, Solver, State
from envs.numerics import seeding
from pirf_ray.diffusion.policy import Policy

Denoise = Callable[[torch.Tensor, float], torch.Tensor]
"""Function D(x; sigma)."""
DenoiserFrom = Callable[[float], Denoise]
"""Function from the sigma at which a step starts to the denoiser of this step."""
Progress = Callable[[Iterable[range]], Iterable[range]]
"""Function that yields the given ranges of samples again and shows how many samples are made."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """Steps of the sampler."""

    num_steps: int = 20
    """N, the number of the sampler's steps. Heun needs 2N-1 network evaluations, Euler N."""
    solver: Solver = "heun"
    """Solver of the sampler's steps: heun (order 2) or euler (order 1)."""

    def __post_init__(self) -> None:
        at_least(self, 1, "num_steps")

    def process(self) -> DenoisingProcess:
        """Return the denoising process with these steps."""
        return DenoisingProcess(self.num_steps, self.solver)


class Sampler(Protocol):
    """Function from noise to samples."""

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        """Return the samples x_0 (b, c, h, w) of standard normal noise (b, c, h, w), model units. The caller disables gradients."""
        ...


class PolicySampler:
    """Sampler that makes the steps of the process with the denoisers of a policy."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        """Return the samples x_0 (b, c, h, w) of standard normal noise, model units."""
        return finish(process, self.policy.denoisers(process), process.initial(noise))


def advance(process: DenoisingProcess, denoiser_from: DenoiserFrom, state: State, stop_step: int) -> State:
    """Return the state at the start of step ``stop_step``."""
    while state.step < stop_step:
        denoiser = denoiser_from(process.sigmas[state.step])
        x, sigma = process.observe(state)
        state = process.transition(state, denoiser(x, sigma))
    return state


def finish(process: DenoisingProcess, denoiser_from: DenoiserFrom, state: State) -> torch.Tensor:
    """Return the samples x_0 (b, c, h, w) that follow from any state."""
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
    """Yield standard normal noise (b, c, h, w), float32, for ``batch`` samples at a time.

    The noise of a sample depends on seed, stream and its id only.
    """
    for ids in progress(list(seeding.chunks(len(sample_ids), batch))):
        yield seeding.normal(seed, stream, [sample_ids[i] for i in ids], shape).float().to(device)
