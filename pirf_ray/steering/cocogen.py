"""CoCoGen (Jacobsen et al. 2024, arXiv 2312.10527): corrections of x by the residual's gradient, none through the network.

    x <- x - step r / ||g||^2 g,  g = dr/dx, r the mean square residual of one sample

once after each of the last fifth of the steps and ``after`` times at the end. The paper scales its constant by the largest
gradient; Polyak's r / ||g||^2 (1969) makes the size dimensionless. A sample under the data floor is left alone.
"""

import torch

from envs.denoising import DenoisingProcess, State
from pirf_ray.diffusion.sampling import Denoise, advance
from pirf_ray.steering.diffusion_pde import first_guided
from pirf_ray.steering.residuals import Residual, polyak, residual_gradient


class CorrectedSampler:
    """The process's steps with corrections between the last ones and after them. All channels are corrected."""

    def __init__(self, denoiser: Denoise, residual: Residual, *, step: float, after: int, floor: float) -> None:
        """``floor``: mean residual of exact data."""
        if not 0 < step <= 1 or after < 0:
            raise ValueError(f"step must be in (0, 1] and after not negative, got {step} and {after}")
        self.denoiser, self.residual, self.step, self.after, self.floor = denoiser, residual, step, after, floor

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        """Return samples x_0 (b, c, h, w) of standard normal noise, model units."""
        state = process.initial(noise)
        for step in range(first_guided(process.num_steps), process.num_steps):
            state = advance(process, lambda sigma: self.denoiser, state, step + 1)
            state = State(x=self.correct(state.x, 1), step=state.step)
        return self.correct(state.x, self.after)

    def correct(self, x: torch.Tensor, times: int) -> torch.Tensor:
        """Return x (b, c, h, w) after so many corrections."""
        for _ in range(times):
            gradient, r = residual_gradient(self.residual, x)
            size = torch.where(r > self.floor, polyak(self.step * r, gradient), torch.zeros_like(r))
            x = x - size[:, None, None, None] * gradient
        return x
