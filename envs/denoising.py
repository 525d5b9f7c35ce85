"""Denoising as a Markov decision process, one step = one network evaluation.

State (x_i, slope, step i); observation (x, sigma); action the denoised prediction D(x; sigma); deterministic transition
by the sampler's step; reward 0 until sigma = 0, then the physics reward of the finished sample. With Heun each step but
the last takes two evaluations (predictor, corrector), so an episode lasts 2N-1 steps; with Euler N.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch

from envs.schedules import karras_schedule
from envs.transitions import euler_step, heun_step, slope

Solver = Literal["heun", "euler"]


@dataclass(frozen=True, kw_only=True)
class State:
    """x (b, c, h, w) at the start of step ``step``; ``slope`` is set between Heun's predictor and corrector."""

    x: torch.Tensor
    step: int
    slope: torch.Tensor | None = None


class DenoisingProcess:
    """The pure core: initial, observe, transition, terminal. Differentiable; holds no state of an episode."""

    def __init__(self, num_steps: int, solver: Solver = "heun") -> None:
        if solver not in get_args(Solver):
            raise ValueError(f"unknown solver {solver!r}; known: {sorted(get_args(Solver))}")
        self.num_steps = num_steps
        self.solver = solver
        self.sigmas: list[float] = karras_schedule(num_steps).tolist()

    @property
    def num_evaluations(self) -> int:
        """NFE: network evaluations of an episode."""
        return self.evaluations_from(0)

    def evaluations_from(self, step: int) -> int:
        """Network evaluations from the start of ``step`` to the end."""
        remaining = self.num_steps - step
        return remaining if self.solver == "euler" else max(2 * remaining - 1, 0)

    def initial(self, noise: torch.Tensor) -> State:
        """Standard normal noise (b, c, h, w) to x_0 = sigma_max noise."""
        return State(x=self.sigmas[0] * noise, step=0)

    def terminal(self, state: State) -> bool:
        return state.step == self.num_steps

    def observe(self, state: State) -> tuple[torch.Tensor, float]:
        """(x, sigma) at which the denoiser is asked next; (x_0, 0) at the end."""
        sigma = self.sigmas[state.step]
        if state.slope is None:
            return state.x, sigma
        sigma_next = self.sigmas[state.step + 1]
        return euler_step(state.x, state.slope, sigma, sigma_next), sigma_next

    def transition(self, state: State, denoised: torch.Tensor) -> State:
        """One evaluation on: Euler's step, or Heun's predictor, or its corrector. The step to sigma = 0 is Euler's."""
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
