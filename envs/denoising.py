"""Denoising as a Markov decision process. A step of the process is a network evaluation.

===========  ===========================================================================================
part         content
===========  ===========================================================================================
state        x, the slope between Heun's predictor and corrector, the step i of the sampler
observation  (x, sigma)
action       the denoised prediction D(x; sigma)
transition   the sampler's step, deterministic
reward       0 until sigma = 0, then the reward of the finished sample
===========  ===========================================================================================

An episode of N sampler steps has N network evaluations with Euler. With Heun it has 2N - 1, since every step except the last
has two evaluations (predictor and corrector).
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from envs.schedules import karras_schedule
from envs.transitions import euler_step, heun_step, slope

Solver = Literal["heun", "euler"]


@dataclass(frozen=True, kw_only=True)
class State:
    """A state of the process: the samples within a step of the sampler."""

    x: torch.Tensor
    """Samples (b, c, h, w) at the start of the step, model units."""
    step: int
    """Number of the sampler's step, from 0."""
    slope: torch.Tensor | None = None
    """Slope (b, c, h, w) of Heun's predictor before the corrector, else None."""


class DenoisingProcess:
    """The denoising process as pure, differentiable functions. It keeps no state of an episode."""

    def __init__(self, num_steps: int, solver: Solver = "heun") -> None:
        """Set the schedule of ``num_steps`` steps and the solver. ValueError if a value is not allowed."""
        if solver not in get_args(Solver):
            raise ValueError(f"unknown solver {solver!r}; known: {sorted(get_args(Solver))}")
        self.num_steps = num_steps
        self.solver = solver
        self.sigmas: list[float] = karras_schedule(num_steps).tolist()

    @property
    def num_evaluations(self) -> int:
        """Number of network evaluations of an episode (NFE)."""
        return self.evaluations_from(0)

    def evaluations_from(self, step: int) -> int:
        """Return the number of network evaluations from the start of a sampler step to the end of the episode."""
        remaining = self.num_steps - step
        return remaining if self.solver == "euler" else max(2 * remaining - 1, 0)

    def initial(self, noise: torch.Tensor) -> State:
        """Return the first state, x = sigma_max noise, from standard normal noise (b, c, h, w)."""
        return State(x=self.sigmas[0] * noise, step=0)

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

    def transition(self, state: State, denoised: torch.Tensor) -> State:
        """Return the state after a network evaluation: Euler's step, Heun's predictor or Heun's corrector.

        The step to sigma = 0 is Euler's. ValueError if the episode has ended.
        """
        if self.terminal(state):
            raise ValueError(f"the episode is over after {self.num_steps} steps; reset first")
        x, sigma = self.observe(state)
        slope_here = slope(x, denoised, sigma)
        if state.slope is not None:
            start, end = self.sigmas[state.step], self.sigmas[state.step + 1]
            return State(x=heun_step(state.x, state.slope, slope_here, start, end), step=state.step + 1)
        sigma_next = self.sigmas[state.step + 1]
        if self.solver == "heun" and sigma_next > 0:
            return State(x=state.x, step=state.step, slope=slope_here)
        return State(x=euler_step(x, slope_here, sigma, sigma_next), step=state.step + 1)
