"""Policy gradients of denoising (DDPO: Black et al. 2023, arXiv 2305.13301; GRPO of flows: Liu et al. 2025, arXiv 2505.05470).

    rho_i = exp((l_t - l_o)_i / d),   loss = mean over chains of sum_i -d min(rho_i A_i, clip(rho_i, 1 - e, 1 + e) A_i) + beta KL_i

The sum runs over the stochastic steps i of the last K steps. l_t and l_o are log densities of the transition under the tuned
and the behaviour policy, d the number of dimensions. A ratio of all dimensions would always be clipped, so the clipped ratio
is that of the mean log density per dimension. The factor d keeps the units of the KL term.

The published KL term has no effect on earlier steps. Its fixed point ignores the KL that a step causes later on, and is not the
tilt. With ``kl_in_return`` the KL of later steps is a part of the return, A_i -> A_i - beta (sum_{j>i} KL_j - its group's mean).
That is the exact gradient of E[r] - beta KL of the chain, whose optimum is the Riccati solution for a Gaussian law. It needs
advantages that are not divided by the reward's standard deviation (``--no-normalize``).
"""

from dataclasses import dataclass
from typing import Literal

import torch

from envs.common.checks import not_negative, positive
from envs.common.parts import PartSettings
from envs.rewards.base import Reward
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.credit.group import relative
from pirf_ray.learning.losses import Batch, Context, Loss
from pirf_ray.learning.objectives.base import Objective, register
from pirf_ray.learning.objectives.steps import reference_mean, trained_evaluations, trained_nodes, trajectory_of, transitions
from pirf_ray.learning.rollouts.records import Trajectory
from pirf_ray.metrics.cost import Cost


@dataclass(frozen=True, kw_only=True)
class PolicyGradientSettings(PartSettings):
    """Settings of policy gradients."""

    kl: float = 0.0
    """beta of the KL divergence to the reference, in units of the reward."""
    kl_in_return: bool = False
    """Whether the KL of later steps is a part of each step's return: the exact KL-regularized objective."""
    ratio: Literal["step", "sequence"] = "step"
    """Likelihood ratio of each step, or one of all steps (GSPO, arXiv 2507.18071)."""
    clip_ratio: float = 0.2
    """e of the clipped ratio."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "kl")
        positive(self, "clip_ratio")


@register("policy-gradient")
class PolicyGradient(Objective):
    """Clipped likelihood ratios times group-relative advantages, with a KL to the base model (DDPO, GRPO)."""

    Settings = PolicyGradientSettings
    makers = ("trajectories",)
    credit = "group"
    needs_gradient = False
    stochastic = True

    def __init__(self, settings: PolicyGradientSettings, context: Context) -> None:
        """Take the settings. The KL in the return is compared within groups, so it couples them."""
        super().__init__(settings, context)
        self.coupled = settings.kl > 0 and settings.kl_in_return

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        """Return the loss of the trained steps. ValueError if the credit left the advantages out."""
        trajectory, settings = trajectory_of(batch), self.settings
        advantages = self._advantages(batch, trajectory)
        dimensions = trajectory.x[0, 0].numel()
        surrogate = trajectory.x.new_zeros(len(batch))
        kl, log_ratios, chosen = surrogate, [], []
        for step in transitions(self.context, policies, trajectory):
            log_ratios.append((step.law.log_density(step.after) - trajectory.log_density[step.node]) / dimensions)
            chosen.append(advantages[step.node])
            if settings.kl:
                kl = kl + step.law.divergence_from(reference_mean(trajectory, step.node))
        ratios, weights = torch.stack(log_ratios), torch.stack(chosen)
        count = len(ratios)
        if settings.ratio == "sequence":
            ratios, weights = ratios.mean(0, keepdim=True), weights.mean(0, keepdim=True)
        ratios = ratios.exp()
        clipped = ratios.clamp(1 - settings.clip_ratio, 1 + settings.clip_ratio)
        gain = torch.minimum(ratios * weights, clipped * weights).sum(0) * (dimensions * count / len(ratios))
        return Loss(
            value=(settings.kl * kl - gain).mean(),
            metrics={
                "kl": kl.detach(),
                "ratio": ratios.detach().mean(0),
                "clipped": (ratios != clipped).float().mean(0),
            },
            kl=kl,
        )

    def _advantages(self, batch: Batch, trajectory: Trajectory) -> torch.Tensor:
        """Return advantages (m, b) of the transitions, with the KL of later steps if it belongs to the return."""
        if batch.advantages is None:
            raise ValueError("policy-gradient needs a credit that fills advantages, such as --credit group")
        beta = float(self.settings.kl)
        if not (beta and self.settings.kl_in_return):
            return batch.advantages
        return batch.advantages - beta * self._later_kl(trajectory)

    @torch.no_grad()
    def _later_kl(self, trajectory: Trajectory) -> torch.Tensor:
        """Return the KL (m, b) of the trained steps after each node, averaged over its leaves, minus the group's mean."""
        nodes = len(trajectory.steps)
        own = trajectory.x.new_zeros(nodes, len(trajectory))
        for node in trained_nodes(self.context, trajectory):
            law = self.context.process.step_law_of_mean(trajectory.steps[trajectory.parents[node]], trajectory.mean[node])
            own[node] = law.divergence_from(reference_mean(trajectory, node))
        later = torch.zeros_like(own)
        for node in reversed(range(nodes)):
            below = trajectory.children(node)
            if below:
                later[node] = torch.stack([own[child] + later[child] for child in below]).mean(0)
        groups = torch.tensor(trajectory.groups)
        return torch.stack([relative(row, groups, normalize=False) for row in later])

    def cost(self, batch: Batch) -> Cost:
        """Return the evaluations at the starts of the trained steps, all with gradient."""
        count = trained_evaluations(self.context, trajectory_of(batch)) * len(batch)
        return Cost(network_forwards=count, network_gradients=count)
