"""CoCoGen (Jacobsen et al. 2024, arXiv 2312.10527): corrections of x by the residual's gradient, none through the network.

    x <- x - step r / ||g||^2 g,  g = dr/dx, r the mean square residual of one sample

once after each of the last fifth of the steps and ``after`` times at the end. The paper scales its constant by the largest
gradient; Polyak's r / ||g||^2 (1969) makes the size dimensionless. A sample under the data floor is left alone.
"""

import optuna
import torch

from envs.denoising import DenoisingProcess, State
from pirf_ray.correction import residual_floor
from pirf_ray.methods.base import Method, Problem, Sampler, Settings, Weights, register
from pirf_ray.methods.diffusion_pde import first_guided, polyak
from pirf_ray.rollout import advance

MOST_CORRECTIONS = 20


@register
class CoCoGen(Method):
    """All channels are corrected, as there; only the sizes are searched."""

    name = "cocogen"
    title = "CoCoGen"
    source = "Jacobsen et al. 2024, arXiv 2312.10527"

    def defaults(self, problem: Problem) -> Settings:
        return {"step": 0.25, "after": MOST_CORRECTIONS // 2}

    def suggest(self, trial: optuna.Trial, problem: Problem) -> Settings:
        return {
            "step": trial.suggest_float("step", 0.05, 1.0, log=True),
            "after": trial.suggest_int("after", 1, MOST_CORRECTIONS),
        }

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        return CorrectedSampler(problem, settings["step"], settings["after"])


class CorrectedSampler:
    """The process's steps with corrections between the last ones and after them."""

    def __init__(self, problem: Problem, step: float, after: int) -> None:
        if not 0 < step <= 1 or after < 0:
            raise ValueError(f"step must be in (0, 1] and after not negative, got {step} and {after}")
        self.problem, self.step, self.after = problem, step, after
        self.floor = residual_floor(problem.pde, problem.pde.default_operator)

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        state = process.initial(noise)
        for step in range(first_guided(process.num_steps), process.num_steps):
            state = advance(process, lambda sigma: self.problem.base, state, step + 1)
            state = State(x=self.correct(state.x, 1), step=state.step)
        return self.correct(state.x, self.after)

    def correct(self, x: torch.Tensor, times: int) -> torch.Tensor:
        """So many corrections of x (b, c, h, w)."""
        for _ in range(times):
            gradient, r = self.problem.residual_gradient(x)
            size = torch.where(r > self.floor, polyak(self.step * r, gradient), torch.zeros_like(r))
            x = x - size[:, None, None, None] * gradient
        return x
