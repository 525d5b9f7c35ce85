"""Adjoint matching (Domingo-Enrich et al. 2024, arXiv 2409.08861), in the discrete form of the sampler's own chain.

    lambda(x_N) = grad r(x_N) / beta,   lambda(x_i) = (d m_b / d x_i)^T lambda(x_{i+1})        (lean adjoint, along the tuned chain)
    loss = sum_i |Sigma_i^(-1/2) (m_t - m_b)(x_i) - Sigma_i^(1/2) lambda(x_{i+1})|^2 / 2

m_t and m_b are the means of the tuned and the reference's step, Sigma_i their covariance. The regression target is the gradient of
the value along the chain, so its fixed point is the optimum of E[r] - beta KL of the chain.
"""

from dataclasses import dataclass

import torch

from envs.common.checks import positive
from envs.common.parts import PartSettings
from envs.denoising import DenoiserFrom, State
from envs.rewards.base import Reward
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.losses import Batch, Loss
from pirf_ray.learning.objectives.base import Objective, register
from pirf_ray.learning.objectives.steps import reference_mean, trained_evaluations, trained_nodes, trajectory_of, transitions
from pirf_ray.learning.rollouts.records import Trajectory
from pirf_ray.metrics.cost import Cost


@dataclass(frozen=True, kw_only=True)
class AdjointSettings(PartSettings):
    """Settings of adjoint matching."""

    temperature: float = 1.0
    """beta of E[r] - beta KL, in units of the reward."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "temperature")


@register("adjoint")
class AdjointMatching(Objective):
    """Regression of each step's change of mean on the lean adjoint of the reward (adjoint matching)."""

    Settings = AdjointSettings
    makers = ("trajectories",)
    needs_gradient = True
    stochastic = True

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        """Return the regression's loss over the trained steps."""
        trajectory = trajectory_of(batch)
        adjoints = self._adjoints(trajectory, policies, reward)
        value = trajectory.x.new_zeros(len(batch))
        kl = value
        for step in transitions(self.context, policies, trajectory):
            base = reference_mean(trajectory, step.node)
            change = -step.law.noise(base)  # (m_t - m_b) in units of the standard deviation
            value = value + 0.5 * (change - step.law.scaled(adjoints[step.node])).square().flatten(1).sum(1)
            kl = kl + 0.5 * change.square().flatten(1).sum(1)
        return Loss(value=value.mean(), metrics={"matching": value.detach(), "kl": kl.detach()}, kl=kl)

    def _adjoints(self, trajectory: Trajectory, policies: Policies, reward: Reward) -> dict[int, torch.Tensor]:
        """Return the lean adjoint (b, c, h, w) at each node that a trained transition leads to."""
        process, steps = self.context.process, trajectory.steps
        base_from = policies.base.denoisers(process, trajectory.condition)
        wanted = trained_nodes(self.context, trajectory)
        adjoints: dict[int, torch.Tensor] = {}
        for node in reversed(range(min(wanted, default=len(steps)), len(steps))):
            with torch.enable_grad():
                x = trajectory.x[node].detach().requires_grad_(True)
                if node in trajectory.leaves:
                    out = self.context.reward(reward, x, trajectory.condition).reward / self.settings.temperature
                    total = out.sum()
                else:
                    total = self._pull_back(trajectory, node, x, base_from, adjoints)
                (adjoints[node],) = torch.autograd.grad(total, x)
        return adjoints

    def _pull_back(
        self,
        trajectory: Trajectory,
        node: int,
        x: torch.Tensor,
        base_from: DenoiserFrom,
        adjoints: dict[int, torch.Tensor],
    ) -> torch.Tensor:
        """Return the scalar whose gradient by x is (d m_b / dx)^T lambda, the mean over the children."""
        process, step = self.context.process, trajectory.steps[node]
        sigma = process.sigmas[step]
        state, denoised = State(x=x, step=step), base_from(sigma)(x, sigma)
        after = process.step_law(state, denoised).mean if process.has_density(step) else process.transition(state, denoised).x
        children = trajectory.children(node)
        target = torch.stack([adjoints[child] for child in children]).mean(0)
        return (after * target).sum()

    def cost(self, batch: Batch) -> Cost:
        """Return the tuned evaluations of the trained steps and the reference's from the second of them on, all with gradient."""
        trajectory = trajectory_of(batch)
        wanted = trained_nodes(self.context, trajectory)
        inner = [n for n in range(min(wanted, default=0), len(trajectory.steps)) if n not in trajectory.leaves]
        count = (trained_evaluations(self.context, trajectory) + len(inner)) * len(batch)
        return Cost(network_forwards=count, network_gradients=count)
