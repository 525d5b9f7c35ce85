"""Preferences between samples (Diffusion-DPO: Wallace et al. 2023, arXiv 2311.12908).

    Delta(x_0) = [e(D_b; x_0, s, n) - e(D_t; x_0, s, n)] / 2,   loss = -ln sigmoid(beta (Delta_win - Delta_lose))

Pairs are neighbours of one group. The sample with the higher reward wins. Only the order of the rewards counts, so the reward may
be a black box, a yes or no, or a person. beta bounds how far the policy goes, but the loss claims no tilt: it raises the reward,
then sharpens on.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from envs.common.checks import at_least, positive
from envs.common.parts import PartSettings
from envs.rewards.base import Reward
from pirf_ray.diffusion.policies import Behaviour, Policies
from pirf_ray.learning.losses import Batch, Loss
from pirf_ray.learning.objectives.base import Objective, register
from pirf_ray.learning.objectives.noising import denoise, error, noised, sample_of
from pirf_ray.metrics.cost import Cost


@dataclass(frozen=True, kw_only=True)
class PreferenceSettings(PartSettings):
    """Settings of preferences."""

    preference_beta: float = 0.1
    """beta of ln sigmoid(beta (Delta_win - Delta_lose)). The stronger, the nearer the policy stays to the base model."""
    noise_draws: int = 1
    """Noise levels per pair and update."""
    online: bool = False
    """Whether pairs are samples of the tuned policy. Otherwise the base model makes them, and they never go stale."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "preference_beta")
        at_least(self, 1, "noise_draws")


@register("preference")
class Preference(Objective):
    """Contrast of the denoising errors of better and worse samples (Diffusion-DPO)."""

    Settings = PreferenceSettings
    makers = ("samples",)
    needs_gradient = False
    coupled = True
    min_group = 2
    group_multiple = 2

    @classmethod
    def behaviour_of(cls, settings: PreferenceSettings) -> Behaviour:
        """Return who makes the pairs."""
        return "tuned" if settings.online else "base"

    def loss(self, batch: Batch, policies: Policies, reward: Reward) -> Loss:
        """Return the loss of the pairs."""
        sample = sample_of(batch)
        winners, losers = pairs(sample.reward, sample.groups)
        delta = self._advantage(batch, policies)
        margin = delta[winners] - delta[losers]
        value = -F.logsigmoid(self.settings.preference_beta * margin)
        told_apart = torch.zeros_like(sample.reward)
        told_apart[winners] = told_apart[losers] = (margin > 0).to(sample.reward)
        return Loss(value=value.mean(), metrics={"implicit_reward": delta.detach(), "accuracy": told_apart})

    def _advantage(self, batch: Batch, policies: Policies) -> torch.Tensor:
        """Return Delta (b,) of each sample, averaged over the draws, on the graph."""
        process, condition = self.context.process, batch.rollouts.condition
        tuned_from, base_from = policies.tuned.denoisers(process, condition), policies.base.denoisers(process, condition)
        delta = sample_of(batch).reward.new_zeros(len(batch))
        for part in noised(self.context, batch, draws=self.settings.noise_draws, purpose="preference"):
            with torch.no_grad():
                reference = error(denoise(base_from, part), part)
            delta = delta.index_add(0, part.rows, 0.5 * (reference - error(denoise(tuned_from, part), part)))
        return delta / float(self.settings.noise_draws)

    def cost(self, batch: Batch) -> Cost:
        """Return one evaluation of both policies per draw, the tuned policy's with gradient."""
        count = self.settings.noise_draws * len(batch)
        return Cost(network_forwards=2 * count, network_gradients=count)


def pairs(reward: torch.Tensor, groups: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows of winners and losers: neighbours 0-1, 2-3, ... of each group. ValueError for a group of odd size."""
    rows: list[tuple[int, int]] = []
    for group in dict.fromkeys(groups):
        own = [i for i, other in enumerate(groups) if other == group]
        if len(own) % 2:
            raise ValueError(f"pairs need groups of even size: --group must be even, got {len(own)}")
        rows += list(zip(own[::2], own[1::2], strict=True))
    first, second = torch.tensor(rows, device=reward.device).T
    better = reward[first] >= reward[second]
    return torch.where(better, first, second), torch.where(better, second, first)
