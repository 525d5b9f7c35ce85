"""Sampling by the pure steps of the denoising process. The caller owns ``no_grad``. No files, no Ray."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, runtime_checkable

import torch

from envs.common.checks import at_least, require
from envs.common.parts import PartRegistry, PartSettings
from envs.denoising import Denoise as Denoise
from envs.denoising import DenoiserFrom as DenoiserFrom
from envs.denoising import DenoisingProcess, Solver, State
from envs.episodes import StepCovariance, make_process
from envs.numerics import seeding
from envs.numerics.conditions import Condition
from envs.pdes import PDE
from pirf_ray.diffusion.policy import Policy

Progress = Callable[[Iterable[range]], Iterable[range]]
"""Function that yields the given ranges of samples again and shows how many samples are made."""
NoiseAt = Callable[[int], torch.Tensor]
"""Function from a step of the sampler to its standard normal noise (b, c, h, w)."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """Steps of the sampler."""

    num_steps: int = 20
    """N, the number of the sampler's steps. Heun needs 2N-1 network evaluations, the other solvers N."""
    solver: Solver = "heun"
    """Solver of the sampler's steps: heun (order 2), euler (order 1), 2m (order 2, one evaluation per step) or stochastic."""

    eta: float = 1.0
    """Size of the noise of stochastic steps, in (0, 1]. 1: each step forgets the noise of the step before."""
    step_covariance: StepCovariance = "plain"
    """Covariance of stochastic steps. plain: of a bridge from D. exact: with the covariance of x_0, for a PDE with a known law."""

    def __post_init__(self) -> None:
        at_least(self, 1, "num_steps")
        require(0 < self.eta <= 1, f"--eta must be in (0, 1], got {self.eta}")
        plain = self.eta == 1 and self.step_covariance == "plain"
        require(plain or self.solver == "stochastic", f"--eta and --step-covariance need --solver stochastic, got {self.solver}")

    def process(self, pde: PDE | None = None) -> DenoisingProcess:
        """Return the denoising process with these steps. ConfigError if exact steps need a law that the PDE does not have.

        Without a PDE the process has the steps' sigmas and counts, but not the exact covariance.
        """
        if pde is None:
            return DenoisingProcess(self.num_steps, self.solver, eta=self.eta)
        return make_process(pde, self.num_steps, self.solver, eta=self.eta, step_covariance=self.step_covariance)

    def arguments(self) -> dict[str, Any]:
        """Return the settings as arguments of the environments."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class SampleBatch:
    """Identity of the samples of a batch: what their random numbers depend on, and what is known of them."""

    seed: int
    """Seed of all samples."""
    stream: str
    """Name of the random stream."""
    ids: Sequence[int]
    """Ids of the samples (b)."""
    condition: Condition | None = None
    """Condition of the samples, one row per sample."""

    def random(self, purpose: str = "") -> seeding.NoiseStream:
        """Return the random numbers of the samples. ``purpose`` names a stream of its own beside the stream of the batch."""
        return seeding.NoiseStream(self.seed, f"{self.stream}: {purpose}" if purpose else self.stream, self.ids)


class Sampler(Protocol):
    """Function from noise to samples.

    A sampler that draws further noise or reads a condition is a ``BatchSampler`` too.
    """

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        """Return the samples x_0 (b, c, h, w) of standard normal noise (b, c, h, w), model units. The caller disables gradients."""
        ...


@runtime_checkable
class BatchSampler(Sampler, Protocol):
    """Sampler that draws further noise or reads a condition, so it must know which samples it makes."""

    def for_batch(self, batch: SampleBatch) -> Sampler:
        """Return the sampler of the samples of a batch. A sample depends on its noise, id, seed, stream and condition only."""
        ...


SAMPLERS: PartRegistry[Sampler] = PartRegistry("sampler", Sampler)
"""Samplers by name. A registered class is made with (settings, policy)."""


def for_batch(sampler: Sampler, batch: SampleBatch) -> Sampler:
    """Return the sampler of the samples of a batch. A plain sampler serves every batch."""
    return sampler.for_batch(batch) if isinstance(sampler, BatchSampler) else sampler


def known_batch(batch: SampleBatch | None, what: str) -> SampleBatch:
    """Return the batch. ValueError if it is not known, since noise that does not depend on the ids changes with the batch."""
    if batch is None:
        raise ValueError(f"{what} draws noise by sample id: name the samples with sampler.for_batch(SampleBatch(...))")
    return batch


class StepNoise:
    """Noise of the steps of a batch: step i takes draw i + 1 of the samples' stream. Draw 0 is their start noise.

    An episode of the environment with the same seed, stream and ids takes the same noise.
    """

    def __init__(self, batch: SampleBatch, like: torch.Tensor) -> None:
        """Draw for a batch. ``like`` (b, c, h, w) gives shape, type and device."""
        self._batch, self._like = batch, like
        self._random, self._drawn = batch.random(), 0

    def __call__(self, step: int) -> torch.Tensor:
        """Return the standard normal noise (b, c, h, w) of a step."""
        if self._drawn > step + 1:
            self._random, self._drawn = self._batch.random(), 0
        while True:
            noise = self._random.draw(tuple(self._like.shape[1:]))
            self._drawn += 1
            if self._drawn == step + 2:
                return noise.to(self._like)


class PolicySampler:
    """Sampler that makes the steps of the process with the denoisers of a policy."""

    def __init__(self, policy: Policy, batch: SampleBatch | None = None) -> None:
        """Sample with a policy. ``batch``: the samples, which stochastic steps and conditions need."""
        self.policy, self.batch = policy, batch

    def for_batch(self, batch: SampleBatch) -> "PolicySampler":
        """Return the sampler of the samples of a batch."""
        return PolicySampler(self.policy, batch)

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        """Return the samples x_0 (b, c, h, w) of standard normal noise, model units. ValueError if it draws for unknown samples."""
        condition = self.batch.condition if self.batch else None
        start = self.policy.initial(process, noise, condition)
        return finish(process, self.policy.denoisers(process, condition), start, step_noise(process, self.batch, noise))


@SAMPLERS.register("policy")
class PolicySteps(PolicySampler):
    """The process's own steps with the policy's denoisers."""

    def __init__(self, settings: PartSettings, policy: Policy) -> None:
        super().__init__(policy)


def step_noise(process: DenoisingProcess, batch: SampleBatch | None, like: torch.Tensor) -> NoiseAt | None:
    """Return the noise of the steps of a batch, or None if the process is deterministic."""
    return StepNoise(known_batch(batch, "a stochastic step"), like) if process.stochastic else None


def advance(
    process: DenoisingProcess, denoiser_from: DenoiserFrom, state: State, stop_step: int, noise_at: NoiseAt | None = None
) -> State:
    """Return the state at the start of step ``stop_step``. A stochastic process needs the noise of its steps."""
    while state.step < stop_step:
        denoiser = denoiser_from(process.sigmas[state.step])
        x, sigma = process.observe(state)
        noise = noise_at(state.step) if noise_at and process.has_density(state.step) else None
        state = process.transition(state, denoiser(x, sigma), noise)
    return state


def finish(process: DenoisingProcess, denoiser_from: DenoiserFrom, state: State, noise_at: NoiseAt | None = None) -> torch.Tensor:
    """Return the samples x_0 (b, c, h, w) that follow from any state. A stochastic process needs the noise of its steps."""
    return advance(process, denoiser_from, state, process.num_steps, noise_at).x


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
