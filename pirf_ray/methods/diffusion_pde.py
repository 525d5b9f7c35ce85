"""DiffusionPDE (Huang et al. 2024, arXiv 2406.17763): guidance by the gradient of the residual's norm, through the network.

    x_{i+1} <- x_{i+1} - zeta grad_{x_i} rho(D(x_i; sigma_i)),  rho the root mean square residual of one sample

in the last fifth of the steps. The norm is each sample's own: a norm over the batch would weigh a sample by its neighbours.
The paper's zeta is a constant in the residual's units; here zeta = guidance rho / ||grad rho||^2, so that one number serves
every PDE: guidance 1 ends the norm where it is linear.
"""

import math

import optuna
import torch

from envs.denoising import DenoisingProcess, State
from pirf_ray.methods.base import Method, Problem, Sampler, Settings, Weights, register

GUIDED_PART = 0.2
"""Of the steps, the last ones."""


def first_guided(num_steps: int) -> int:
    """First step of the guided part; at least the last step is guided."""
    return num_steps - max(1, math.ceil(GUIDED_PART * num_steps))


def polyak(value: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """value / ||gradient||^2 (b,), each sample's own; 0 where the gradient (b, c, h, w) is 0 and shows no way down."""
    square = gradient.flatten(1).square().sum(1)
    size = value / square.clamp_min(torch.finfo(square.dtype).tiny)
    return torch.where(square == 0, torch.zeros_like(size), size)


@register
class DiffusionPDE(Method):
    """The evaluation that a step begins with anyway is differentiated: 2N-1 evaluations, as without guidance."""

    name = "diffusion-pde"
    title = "DiffusionPDE"
    source = "Huang et al. 2024, arXiv 2406.17763"

    def defaults(self, problem: Problem) -> Settings:
        return {"guidance": 0.1}

    def suggest(self, trial: optuna.Trial, problem: Problem) -> Settings:
        return {"guidance": trial.suggest_float("guidance", 0.01, 1.0, log=True)}

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        return GuidedSampler(problem, settings["guidance"])


class GuidedSampler:
    """The process's own steps, those of the guided part followed by a move down the norm's gradient."""

    def __init__(self, problem: Problem, guidance: float) -> None:
        if guidance < 0:
            raise ValueError(f"guidance must not be negative, got {guidance}")
        self.problem, self.guidance = problem, guidance

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        state = process.initial(noise)
        guided = first_guided(process.num_steps)
        while not process.terminal(state):
            state = self._guided_step(process, state) if state.step >= guided else self._step(process, state)
        return state.x

    def _step(self, process: DenoisingProcess, state: State) -> State:
        """One evaluation on."""
        return process.transition(state, self.problem.base(*process.observe(state)))

    def _guided_step(self, process: DenoisingProcess, state: State) -> State:
        """A whole step on, from its start."""
        step = state.step
        with torch.enable_grad():
            x = state.x.detach().requires_grad_(True)
            denoised = self.problem.base(x, process.sigmas[step])
            norm = self.problem.residual(denoised).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
            (gradient,) = torch.autograd.grad(norm.sum(), x)
        state = process.transition(state, denoised.detach())
        while state.step == step:
            state = self._step(process, state)
        size = polyak(self.guidance * norm.detach(), gradient)
        return State(x=state.x - size[:, None, None, None] * gradient, step=state.step)
