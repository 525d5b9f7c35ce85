"""DiffusionPDE (Huang et al. 2024, arXiv 2406.17763): guidance by the gradient of the residual's norm, through the network.

    x_{i+1} <- x_{i+1} - zeta grad_{x_i} rho(D(x_i; sigma_i)),  rho the root mean square residual of one sample

in the last fifth of the steps. The norm is each sample's own: a norm over the batch would weigh a sample by its neighbours.
The paper's zeta is a constant in the residual's units. Here zeta = guidance rho / ||grad rho||^2, so that one number serves
every PDE: guidance 1 ends the norm where it is linear.
"""

import math

import torch

from envs.denoising import DenoisingProcess, State
from pirf_ray.diffusion.sampling import Denoise
from pirf_ray.steering.residuals import Residual, polyak

GUIDED_PART = 0.2
"""Part of the steps, the last ones, that is guided."""


def first_guided(num_steps: int) -> int:
    """Return the first step of the guided part; at least the last step is guided."""
    return num_steps - max(1, math.ceil(GUIDED_PART * num_steps))


class GuidedSampler:
    """The process's own steps, in the guided part each followed by a move down the norm's gradient.

    The evaluation that a step begins with anyway is differentiated: 2N-1 evaluations, as without guidance.
    """

    def __init__(self, denoiser: Denoise, residual: Residual, *, guidance: float) -> None:
        if guidance < 0:
            raise ValueError(f"guidance must not be negative, got {guidance}")
        self.denoiser, self.residual, self.guidance = denoiser, residual, guidance

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        """Return samples x_0 (b, c, h, w) of standard normal noise, model units."""
        state = process.initial(noise)
        guided = first_guided(process.num_steps)
        while not process.terminal(state):
            state = self._guided_step(process, state) if state.step >= guided else self._step(process, state)
        return state.x

    def _step(self, process: DenoisingProcess, state: State) -> State:
        """Return the state one evaluation later."""
        return process.transition(state, self.denoiser(*process.observe(state)))

    def _guided_step(self, process: DenoisingProcess, state: State) -> State:
        """Return the state one whole step later, from a step's start."""
        step = state.step
        with torch.enable_grad():
            x = state.x.detach().requires_grad_(True)
            denoised = self.denoiser(x, process.sigmas[step])
            norm = self.residual(denoised).clamp_min(torch.finfo(x.dtype).tiny).sqrt()
            (gradient,) = torch.autograd.grad(norm.sum(), x)
        state = process.transition(state, denoised.detach())
        while state.step == step:
            state = self._step(process, state)
        size = polyak(self.guidance * norm.detach(), gradient)
        return State(x=state.x - size[:, None, None, None] * gradient, step=state.step)
