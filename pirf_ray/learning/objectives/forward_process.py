"""Reward contrast on the forward process (DiffusionNFT: Zheng et al. 2025, arXiv 2509.16117).

    D+ = (1 - b) D_o + b D_t,   D- = (1 + b) D_o - b D_t,   loss = w [ p |D+ - x_0|^2 + (1 - p) |D- - x_0|^2 ] / s^2

at x_0 + s n, with D_o a lagged snapshot that makes the samples and p in [0, 1] the probability that the sample is good:

    p = 1/2 + 1/2 clip(A / Z, -1, 1),   A = r - mean_g r over its standard deviation

No likelihood, no chain and no reward gradient are needed. The loss claims no tilt.
"""

from dataclasses import dataclass

import torch

from envs.common.checks import at_least, not_negative, positive, require
from envs.common.parts import PartSettings
from envs.rewards.base import Reward
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.losses import Batch, Loss
from pirf_ray.learning.objectives.base import Objective, register
from pirf_ray.learning.objectives.noising import denoise, error, noised, sample_of
from pirf_ray.metrics.cost import Cost


@dataclass(frozen=True, kw_only=True)
class ForwardProcessSettings(PartSettings):
    """Settings of the contrast on the forward process."""

    contrast: float = 1.0
    """b, how far the better and the worse denoiser lie from the old one."""
    advantage_clip: float = 1.0
    """Z, the advantage at which a sample counts as wholly good."""
    noise_draws: int = 1
    """Noise levels per sample and update."""
    old_rate: float = 0.1
    """Part of the way that the old policy follows the tuned one in each update."""
    reference_weight: float = 0.0
    """Weight of the squared distance to the reference's denoised fields, in the same units as the loss."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "contrast", "advantage_clip")
        at_least(self, 1, "noise_draws")
        require(0 < self.old_rate <= 1, f"--old-rate must be in (0, 1], got {self.old_rate}")
        not_negative(self, "reference_weight")


@register("forward-process")
class ForwardProcess(Objective):
    """Good and bad samples contrasted by their denoising errors, with a lagged policy (DiffusionNFT)."""

    Settings = ForwardProcessSettings
    makers = ("samples",)
    credit = "group"
    behaviour = "old"
    needs_gradient = False

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        """Return the contrast. ValueError if the credit left the advantages out."""
        if batch.advantages is None:
            raise ValueError("forward-process needs a credit that fills advantages, such as --credit group")
        settings, sample, process = self.settings, sample_of(batch), self.context.process
        good = 0.5 + 0.5 * (batch.advantages / settings.advantage_clip).clamp(-1, 1)
        policy_of = {"tuned": policies.tuned, "old": policies.old, "base": policies.base}
        froms = {name: policy.denoisers(process, sample.condition) for name, policy in policy_of.items()}
        value = sample.reward.new_zeros(len(batch))
        for part in noised(self.context, batch, draws=settings.noise_draws, purpose="forward process"):
            tuned = denoise(froms["tuned"], part)
            with torch.no_grad():
                old = denoise(froms["old"], part)
            b, p = settings.contrast, good[part.rows]
            better, worse = (1 - b) * old + b * tuned, (1 + b) * old - b * tuned
            own = p * error(better, part) + (1 - p) * error(worse, part)
            if settings.reference_weight:
                with torch.no_grad():
                    base = denoise(froms["base"], part)
                own = own + settings.reference_weight * part.weight * (tuned - base).square().flatten(1).sum(1) / part.sigma**2
            value = value.index_add(0, part.rows, own)
        value = value / settings.noise_draws
        return Loss(value=value.mean(), metrics={"contrast": value.detach(), "good": good})

    def advance(self, policies: Policies, update: int) -> None:
        """Let the old policy follow the tuned one."""
        policies.move_old(self.settings.old_rate)

    def cost(self, batch: Batch) -> Cost:
        """Return the evaluations of the policies at each draw, the tuned policy's with gradient."""
        count = self.settings.noise_draws * len(batch)
        policies = 3 if self.settings.reference_weight else 2
        return Cost(network_forwards=policies * count, network_gradients=count)
