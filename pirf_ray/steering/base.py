"""The steering seam: search and guidance while sampling. No weights change.

A steerer is what one loop asks in each step. ``steer`` is the loop, and makes a sampler of a steerer.

>>> import torch
>>> from envs.denoising import DenoisingProcess
>>> from pirf_ray.steering.search import OneDenoiser
>>> @STEERERS.register("shifted")
... class Shifted(PlainSteerer):
...     "Steps of the process, each followed by a shift of 1."
...     def propose(self, search, particles):
...         moved = search.step(particles)
...         return moved.moved(moved.state.x + 1)
>>> context = SteeringContext(policy=OneDenoiser(lambda x, sigma: 0 * x))
>>> sampler = steer(STEERERS.make("shifted", None, context))
>>> sampler(DenoisingProcess(4), torch.zeros(2, 1, 8, 8)).mean()
tensor(1.)
>>> sampler.cost(DenoisingProcess(4)).network_forwards
7
"""

from dataclasses import replace
from typing import ClassVar, Protocol

import torch

from envs.common.parts import PartRegistry, PartSettings
from envs.denoising import DenoisingProcess
from pirf_ray.diffusion.sampling import SampleBatch
from pirf_ray.metrics.cost import Cost
from pirf_ray.steering.context import SteeringContext
from pirf_ray.steering.search import Particles, Search


class Steerer(Protocol):
    """Rule of a search or of guidance. A registered class is made with (settings, context)."""

    context: SteeringContext
    """What the steerer uses."""
    rounds: int
    """Times that the samples are made."""
    looks: bool
    """Whether ``value`` reads denoised predictions. The loop evaluates them once, and the next step uses them."""

    def check(self, process: DenoisingProcess) -> None:
        """Raise ConfigError, which names the flag, if the steerer cannot use the process."""
        ...

    def start(self, search: Search, round: int) -> Particles:
        """Return the first particles of a round. ``search.archive`` has what earlier rounds kept."""
        ...

    def propose(self, search: Search, particles: Particles) -> Particles:
        """Return the next particles: one or more for each particle. All of them are at the same step."""
        ...

    def value(self, search: Search, particles: Particles) -> torch.Tensor:
        """Return what each particle is worth (b k,). ``particles.denoised`` is there if ``looks``, except at sigma = 0."""
        ...

    def select(self, search: Search, particles: Particles) -> Particles:
        """Return the particles that go on: resampled, pruned, accepted or all. Their ``values`` are there."""
        ...

    def back_up(self, search: Search, particles: Particles) -> None:
        """Keep what the round is worth. After the last round ``search.archive.x`` has one sample for each noise."""
        ...

    def cost(self, process: DenoisingProcess) -> Cost:
        """Return the cost per sample: forwards as the meter counts them, or an upper bound where the data decide."""
        ...

    def rewarded(self, process: DenoisingProcess) -> int:
        """Return the number of fields per sample whose reward is computed without gradient."""
        ...


STEERERS: PartRegistry[Steerer] = PartRegistry("steerer", Steerer, flag="steer")
"""Steerers by name."""
register = STEERERS.register


class PlainSteerer:
    """Steerer that changes nothing: one particle per sample, which makes the process's steps. Steerers override a part of it."""

    Settings: ClassVar[type[PartSettings]] = PartSettings
    rounds = 1
    looks = False

    def __init__(self, settings: PartSettings, context: SteeringContext) -> None:
        self.context = context

    def check(self, process: DenoisingProcess) -> None:
        """Accept every process."""

    def start(self, search: Search, round: int) -> Particles:
        """Return one particle per sample, at its start noise."""
        return search.first()

    def propose(self, search: Search, particles: Particles) -> Particles:
        """Return the particles one whole step later."""
        return search.step(particles)

    def value(self, search: Search, particles: Particles) -> torch.Tensor:
        """Return 0 for each particle."""
        return particles.state.x.new_zeros(len(particles))

    def select(self, search: Search, particles: Particles) -> Particles:
        """Return all particles."""
        return particles

    def back_up(self, search: Search, particles: Particles) -> None:
        """Keep each sample with the largest value of all rounds."""
        assert particles.values is not None, "the loop sets the values"
        search.archive.keep(particles.state.x, particles.values)

    def cost(self, process: DenoisingProcess) -> Cost:
        """Return the evaluations of the process."""
        return Cost(network_forwards=process.num_evaluations)

    def rewarded(self, process: DenoisingProcess) -> int:
        """Return 0."""
        return 0


class SteeredSampler:
    """Sampler that makes the steps of a process as a steerer says: the one loop of all searches."""

    def __init__(self, steerer: Steerer, batch: SampleBatch | None = None) -> None:
        """Sample with a steerer. ``batch``: the samples, which random steerers need."""
        self.steerer, self.batch = steerer, batch

    def for_batch(self, batch: SampleBatch) -> "SteeredSampler":
        """Return the sampler of the samples of a batch."""
        return SteeredSampler(self.steerer, batch)

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        """Return the samples x_0 (b, c, h, w) of standard normal noise, model units.

        ConfigError if the steerer cannot use the process. ValueError if it draws noise for samples that are not named.
        """
        steerer = self.steerer
        steerer.check(process)
        search = Search(process, steerer.context.policy, noise, self.batch)
        for round in range(steerer.rounds):
            particles = steerer.start(search, round)
            while not process.terminal(particles.state):
                particles = steerer.propose(search, particles)
                if steerer.looks:
                    particles = search.look(particles)
                particles = replace(particles, values=steerer.value(search, particles))
                particles = steerer.select(search, particles)
            steerer.back_up(search, particles)
        assert search.archive.x is not None, "the last round keeps the samples"
        return search.archive.x

    def cost(self, process: DenoisingProcess) -> Cost:
        """Return the cost per sample."""
        return self.steerer.cost(process)


def steer(steerer: Steerer) -> SteeredSampler:
    """Return the sampler that a steerer makes."""
    return SteeredSampler(steerer)
