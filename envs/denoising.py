"""Denoising as a Markov decision process. A step of the process is a network evaluation.

===========  ===========================================================================================
part         content
===========  ===========================================================================================
state        x, the step i of the sampler, the slope (Heun) or the last denoised prediction (2M)
observation  everything that the next state depends on
action       the denoised prediction D(x; sigma)
transition   the sampler's step, deterministic or stochastic with a known log density
reward       0 until sigma = 0, then the reward of the finished sample
===========  ===========================================================================================

An episode of N sampler steps has N network evaluations. With Heun it has 2N - 1, since every step except the last has two
evaluations (predictor and corrector).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch

from envs.numerics.gaussian import GaussianLaw
from envs.schedules import RHO, SIGMA_MAX, SIGMA_MIN, karras_schedule
from envs.transitions import StochasticStep, euler_step, heun_step, multistep_step, slope, step_std, stochastic_mean

Solver = Literal["heun", "euler", "2m", "stochastic"]
Denoise = Callable[[torch.Tensor, float], torch.Tensor]
"""Function D(x; sigma)."""
DenoiserFrom = Callable[[float], Denoise]
"""Function from the sigma at which a step starts to the denoiser of this step."""


@dataclass(frozen=True, kw_only=True, eq=False)
class State:
    """A state of the process: the samples within a step of the sampler."""

    x: torch.Tensor
    """Samples (b, c, h, w) at the start of the step, model units."""
    step: int
    """Number of the sampler's step, from 0."""
    slope: torch.Tensor | None = None
    """Slope (b, c, h, w) of Heun's predictor before the corrector, else None."""
    previous: torch.Tensor | None = None
    """Denoised prediction (b, c, h, w) of the step before, for 2M, else None."""


class StartLaw(Protocol):
    """Law of the first state."""

    def __call__(self, noise: torch.Tensor, sigma: float) -> torch.Tensor:
        """Return first states (b, c, h, w) at sigma from standard normal noise (b, c, h, w)."""
        ...


def white_start(noise: torch.Tensor, sigma: float) -> torch.Tensor:
    """Return sigma times the noise: the law of a field that is all noise."""
    return sigma * noise


def gaussian_start(law: GaussianLaw) -> StartLaw:
    """Return the start mean + (C + sigma^2)^(1/2) noise: the noised law itself, exact for a Gaussian law at any sigma."""
    return law.draw


class DenoisingProcess:
    """The denoising process as pure, differentiable functions. It keeps no state of an episode."""

    def __init__(
        self,
        num_steps: int,
        solver: Solver = "heun",
        *,
        eta: float = 1.0,
        law: GaussianLaw | None = None,
        start: StartLaw = white_start,
        sigma_max: float = SIGMA_MAX,
        sigma_min: float = SIGMA_MIN,
        rho: float = RHO,
    ) -> None:
        """Set the schedule and the solver. ValueError if a value is not allowed.

        ``eta`` in (0, 1] scales the noise of stochastic steps; 1 forgets the state before. ``law``: Gaussian law of the fields,
        whose covariance completes the stochastic steps (envs.transitions).
        """
        if solver not in get_args(Solver):
            raise ValueError(f"unknown solver {solver!r}; known: {sorted(get_args(Solver))}")
        if not 0 < eta <= 1:
            raise ValueError(f"eta must be in (0, 1], got {eta}")
        self.num_steps, self.solver, self.eta, self.law, self.start = num_steps, solver, eta, law, start
        self._stds: dict[tuple[int, torch.dtype, torch.device], float | torch.Tensor] = {}
        self.sigmas: list[float] = karras_schedule(num_steps, sigma_min=sigma_min, sigma_max=sigma_max, rho=rho).tolist()

    @property
    def stochastic(self) -> bool:
        """Whether steps need noise."""
        return self.solver == "stochastic"

    @property
    def num_evaluations(self) -> int:
        """Number of network evaluations of an episode (NFE)."""
        return self.evaluations_from(0)

    def evaluations_from(self, step: int) -> int:
        """Return the number of network evaluations from the start of a sampler step to the end of the episode."""
        remaining = self.num_steps - step
        return max(2 * remaining - 1, 0) if self.solver == "heun" else remaining

    def initial(self, noise: torch.Tensor) -> State:
        """Return the first state from standard normal noise (b, c, h, w), by the start law."""
        return State(x=self.start(noise, self.sigmas[0]), step=0)

    def terminal(self, state: State) -> bool:
        """Return whether the episode has ended: sigma = 0."""
        return state.step == self.num_steps

    def observe(self, state: State) -> tuple[torch.Tensor, float]:
        """Return (x, sigma) for the next network evaluation. At the end x is the finished sample and sigma is 0."""
        sigma = self.sigmas[state.step]
        if state.slope is None:
            return state.x, sigma
        sigma_next = self.sigmas[state.step + 1]
        return euler_step(state.x, state.slope, sigma, sigma_next), sigma_next

    def has_density(self, step: int) -> bool:
        """Return whether the step is stochastic: the step to sigma = 0 never is."""
        return self.stochastic and step < self.num_steps - 1

    def step_law(self, state: State, denoised: torch.Tensor) -> StochasticStep:
        """Return the law of the next state. ValueError if the step has no density."""
        if not self.has_density(state.step):
            raise ValueError(f"step {state.step} of the solver {self.solver} is deterministic and has no density")
        sigma, sigma_next = self.sigmas[state.step], self.sigmas[state.step + 1]
        mean = stochastic_mean(state.x, denoised, sigma, sigma_next, eta=self.eta)
        return StochasticStep(mean=mean, std=self._std(state.step, mean), law=self.law)

    def step_law_of_mean(self, step: int, mean: torch.Tensor) -> StochasticStep:
        """Return the law of the state after a stochastic step, from its mean (b, c, h, w)."""
        return StochasticStep(mean=mean, std=self._std(step, mean), law=self.law)

    def _std(self, step: int, like: torch.Tensor) -> float | torch.Tensor:
        """Return the standard deviation of a stochastic step, which is computed once per step, type and device."""
        key = step, like.dtype, like.device
        if key not in self._stds:
            std = step_std(self.sigmas[step], self.sigmas[step + 1], eta=self.eta, law=self.law)
            self._stds[key] = std.to(like) if isinstance(std, torch.Tensor) else std
        return self._stds[key]

    def transition(self, state: State, denoised: torch.Tensor, noise: torch.Tensor | None = None) -> State:
        """Return the state after a network evaluation.

        It follows Euler's step, Heun's predictor or corrector, 2M's step, or a stochastic step, which needs standard normal
        noise (b, c, h, w). The step to sigma = 0 is x = D. ValueError if the episode has ended, or if noise is missing.
        """
        if self.terminal(state):
            raise ValueError(f"the episode is over after {self.num_steps} steps; reset first")
        if self.has_density(state.step):
            if noise is None:
                raise ValueError("a stochastic step needs noise")
            return State(x=self.step_law(state, denoised).draw(noise), step=state.step + 1)
        x, sigma = self.observe(state)
        slope_here = slope(x, denoised, sigma)
        if state.slope is not None:
            start, end = self.sigmas[state.step], self.sigmas[state.step + 1]
            return State(x=heun_step(state.x, state.slope, slope_here, start, end), step=state.step + 1)
        sigma_next = self.sigmas[state.step + 1]
        if self.solver == "heun" and sigma_next > 0:
            return State(x=state.x, step=state.step, slope=slope_here)
        if self.solver == "2m" and sigma_next > 0:
            return State(x=self._multistep(state, denoised), step=state.step + 1, previous=denoised)
        return State(x=euler_step(x, slope_here, sigma, sigma_next), step=state.step + 1)

    def _multistep(self, state: State, denoised: torch.Tensor) -> torch.Tensor:
        sigma, sigma_next = self.sigmas[state.step], self.sigmas[state.step + 1]
        if state.previous is None:  # the first step of an episode has no history: first order
            return euler_step(state.x, slope(state.x, denoised, sigma), sigma, sigma_next)
        return multistep_step(state.x, denoised, state.previous, self.sigmas[state.step - 1], sigma, sigma_next)

    def invert(self, denoiser_from: DenoiserFrom, x0: torch.Tensor, to_step: int) -> State:
        """Return the state at the start of ``to_step`` from which the deterministic sampler leads to x0 (b, c, h, w).

        The probability-flow ODE runs backward from sigma_min, where the state is taken to be x0. Heun and 2M go back by Heun's
        steps, the others by Euler's. ValueError unless 0 <= to_step < N.
        """
        if not 0 <= to_step < self.num_steps:
            raise ValueError(f"to_step must be in [0, {self.num_steps - 1}], got {to_step}")
        x = x0
        for step in range(self.num_steps - 2, to_step - 1, -1):
            sigma, sigma_next = self.sigmas[step + 1], self.sigmas[step]
            denoise = denoiser_from(sigma_next)  # the denoiser that makes this step forward
            here = slope(x, denoise(x, sigma), sigma)
            there = euler_step(x, here, sigma, sigma_next)
            if self.solver in ("heun", "2m"):
                there = heun_step(x, here, slope(there, denoise(there, sigma_next), sigma_next), sigma, sigma_next)
            x = there
        return State(x=x, step=to_step)
