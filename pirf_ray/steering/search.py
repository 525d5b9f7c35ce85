"""What one call of a steered sampler works with: particles, random numbers, evaluations, and the best samples so far.

Each sample of the batch has the same number of particles, and the particles of a sample are neighbours. So the particles of b
samples are rows of tensors: row i k + j is particle j of sample i.
"""

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from envs.denoising import Denoise, DenoiserFrom, DenoisingProcess, State
from envs.numerics.conditions import Condition, select
from envs.numerics.seeding import NoiseStream
from pirf_ray.diffusion.sampling import SampleBatch, known_batch

EVALUATED_TOGETHER = 64
"""Fields that are evaluated at a time, if the batch has fewer samples. It bounds the memory of many particles per sample."""


class StepPolicy(Protocol):
    """Denoisers of the steps, such as ``pirf_ray.diffusion.policy.Policy``."""

    def initial(self, process: DenoisingProcess, noise: torch.Tensor, condition: Condition | None = None) -> State:
        """Return the first state from standard normal noise (b, c, h, w)."""
        ...

    def denoisers(self, process: DenoisingProcess, condition: Condition | None = None) -> DenoiserFrom:
        """Return the denoiser of each step, from the sigma at which the step starts."""
        ...


@dataclass(frozen=True)
class OneDenoiser:
    """Policy that makes every step with one function D(x; sigma)."""

    denoise: Denoise

    def initial(self, process: DenoisingProcess, noise: torch.Tensor, condition: Condition | None = None) -> State:
        """Return the first state of the process."""
        return process.initial(noise)

    def denoisers(self, process: DenoisingProcess, condition: Condition | None = None) -> DenoiserFrom:
        """Return the function, whatever the step."""
        return lambda step_sigma: self.denoise


@dataclass(frozen=True, kw_only=True)
class Particles:
    """States of the process, k for each sample, with what is known of them."""

    state: State
    """States: x (b k, c, h, w) and the step, the same for all."""
    denoised: torch.Tensor | None = None
    """Denoised predictions (b k, c, h, w) at the states, if the network was evaluated there."""
    values: torch.Tensor | None = None
    """Values (b k,) that the steerer gave last."""
    carried: Mapping[str, torch.Tensor] = field(default_factory=dict)
    """Further numbers (b k, ...) by name that go with the particles, such as the log weights of a particle filter."""

    def __len__(self) -> int:
        return len(self.state.x)

    def rows(self, index: torch.Tensor) -> "Particles":
        """Return the particles of the given rows. A row may be given more than once."""
        state = self.state
        return Particles(
            state=replace(state, x=state.x[index], slope=_rows(state.slope, index), previous=_rows(state.previous, index)),
            denoised=_rows(self.denoised, index),
            values=_rows(self.values, index),
            carried={name: tensor[index] for name, tensor in self.carried.items()},
        )

    def times(self, count: int) -> "Particles":
        """Return ``count`` copies of each particle, next to each other."""
        if count == 1:
            return self
        return self.rows(torch.arange(len(self), device=self.state.x.device).repeat_interleave(count))

    def moved(self, x: torch.Tensor) -> "Particles":
        """Return the particles at other states x (b k, c, h, w) of the same step. The network was not evaluated there."""
        return replace(self, state=replace(self.state, x=x), denoised=None)


def _rows(tensor: torch.Tensor | None, index: torch.Tensor) -> torch.Tensor | None:
    return None if tensor is None else tensor[index]


class Archive:
    """What a search keeps from one round to the next."""

    def __init__(self) -> None:
        self.x: torch.Tensor | None = None
        """Samples x_0 (b, c, h, w), model units, that the sampler returns. None before the first round ends."""
        self.values: torch.Tensor | None = None
        """Values (b,) of these samples."""
        self.memory: dict[str, Any] = {}
        """Whatever a steerer keeps by name, such as the nodes of a tree."""

    def keep(self, x: torch.Tensor, values: torch.Tensor) -> None:
        """Keep each sample x (b, c, h, w) that is the first or has a larger value (b,). A value that is not a number loses."""
        if self.x is None or self.values is None:
            self.x, self.values = x, values
            return
        better = (values > self.values) | (self.values.isnan() & ~values.isnan())
        self.x = torch.where(better[:, None, None, None], x, self.x)
        self.values = torch.where(better, values, self.values)


class Search:
    """One call of a steered sampler for a batch of b samples."""

    def __init__(
        self, process: DenoisingProcess, policy: StepPolicy, noise: torch.Tensor, batch: SampleBatch | None = None
    ) -> None:
        """Start a search. ``noise``: standard normal start noise (b, c, h, w). ``batch``: the samples, for further noise."""
        self.process, self.policy, self.noise = process, policy, noise
        self.batch, self.archive = batch, Archive()
        self._random: NoiseStream | None = None

    # --- random numbers: every sample makes the same draws, whatever the data ---

    def normal(self, count: int = 1) -> torch.Tensor:
        """Return standard normal noise (b count, c, h, w) for ``count`` particles of each sample.

        It depends on seed, stream, sample id and the earlier draws only.
        """
        drawn = self._stream().draw((count, *self.noise.shape[1:]))
        return drawn.flatten(0, 1).to(self.noise)

    def uniform(self) -> torch.Tensor:
        """Return a number (b,) in [0, 1] for each sample, float64, uniformly distributed."""
        uniform: torch.Tensor = torch.special.ndtr(self._stream().draw(()))
        return uniform.to(self.noise.device)

    def _stream(self) -> NoiseStream:
        if self._random is None:
            self._random = known_batch(self.batch, "this steerer").random("steer")
        return self._random

    # --- particles ---

    def first(self, noise: torch.Tensor | None = None) -> Particles:
        """Return the particles at the first step from standard normal noise (b k, c, h, w), by default one for each sample.

        The default is the start noise of the samples.
        """
        noise = self.noise if noise is None else noise
        return Particles(state=self.policy.initial(self.process, noise, self.condition(len(noise))))

    def condition(self, rows: int) -> Condition | None:
        """Return the condition of ``rows`` particles, b k."""
        condition = self.batch.condition if self.batch else None
        if condition is None or rows == len(self.noise):
            return condition
        owners = torch.arange(len(self.noise), device=self.noise.device).repeat_interleave(rows // len(self.noise))
        return select(condition, owners)

    def by_sample(self, values: torch.Tensor) -> torch.Tensor:
        """Return values (b k, ...) of particles as (b, k, ...)."""
        return values.reshape(len(self.noise), self._count(values), *values.shape[1:])

    def picked(self, particles: Particles, index: torch.Tensor) -> Particles:
        """Return one particle of each sample. ``index`` (b,): its place among the particles of the sample."""
        return particles.rows(torch.arange(len(self.noise), device=index.device) * self._count(particles) + index)

    def _count(self, rows: Sized) -> int:
        """Return k, the number of particles of each sample."""
        return len(rows) // max(1, len(self.noise))

    # --- evaluations ---

    def denoise(self, x: torch.Tensor, sigma: float, step: int) -> torch.Tensor:
        """Return D(x; sigma) (b k, c, h, w) by the denoiser of a step, a part of the particles at a time."""

        def part(rows: torch.Tensor, condition: Condition | None) -> torch.Tensor:
            return self.policy.denoisers(self.process, condition)(self.process.sigmas[step])(rows, sigma)

        return self.in_parts(part, x)

    def in_parts(self, function: Callable[[torch.Tensor, Condition | None], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        """Return function(x, condition) of particles x (b k, c, h, w), for at most a batch or EVALUATED_TOGETHER at a time."""
        size, condition = max(len(self.noise), EVALUATED_TOGETHER), self.condition(len(x))
        if len(x) <= size:
            return function(x, condition)
        slices = [slice(start, start + size) for start in range(0, len(x), size)]
        return torch.cat([function(x[rows], select(condition, rows)) for rows in slices])

    def look(self, particles: Particles) -> Particles:
        """Return the particles with their denoised predictions. The network is evaluated where they are not known yet."""
        state = particles.state
        if particles.denoised is not None or self.process.terminal(state):
            return particles
        x, sigma = self.process.observe(state)
        return replace(particles, denoised=self.denoise(x, sigma, state.step))

    def step(self, particles: Particles) -> Particles:
        """Return the particles after the rest of a whole step of the process, with all evaluations that it needs.

        A stochastic step draws noise of its own for each particle.
        """
        step, process = particles.state.step, self.process
        known = self.look(particles)
        assert known.denoised is not None, "a finished particle has no further step"
        noise = self.normal(self._count(known)) if process.has_density(step) else None
        state = process.transition(known.state, known.denoised, noise)
        while state.step == step:
            x, sigma = process.observe(state)
            state = process.transition(state, self.denoise(x, sigma, step))
        return replace(known, state=state, denoised=None)


def pick(values: torch.Tensor, temperature: float, uniform: torch.Tensor) -> torch.Tensor:
    """Return the place (b,) of one of m values (b, m), with a probability proportional to exp(value / temperature).

    Temperature 0 picks the largest value. ``uniform`` (b,): a number in [0, 1] for each sample. A value that is not finite is
    picked only if no value of the sample is finite.
    """
    usable = torch.where(values.isfinite(), values.double(), -torch.inf)
    if temperature == 0:
        return usable.argmax(1)
    usable = torch.where(usable.isfinite().any(1, keepdim=True), usable, 0.0)
    total = (usable / temperature).softmax(1).cumsum(1)
    return (total <= uniform[:, None] * total[:, -1:]).sum(1).clamp_max(values.shape[1] - 1)
