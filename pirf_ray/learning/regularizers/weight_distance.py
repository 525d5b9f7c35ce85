"""The squared distance of the weights from the pretrained weights (Yuan et al. 2025, arXiv 2509.20570)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from envs.common.checks import not_negative
from envs.common.parts import PartSettings
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.losses import Batch, Loss
from pirf_ray.learning.regularizers.base import Regularizer, register


@dataclass(frozen=True, kw_only=True)
class WeightDistanceSettings(PartSettings):
    """Settings of the squared distance of the weights."""

    l2: float = 0.0
    """lambda of lambda * sum ||theta - theta_0||^2 over the learning weights theta; theta_0 are the pretrained weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "l2")


@register("l2")
class WeightDistance(Regularizer):
    """Squared distance of the learning weights from the pretrained weights."""

    Settings = WeightDistanceSettings

    def penalty(self, batch: Batch, policies: Policies, loss: Loss) -> Loss:
        """Return lambda sum ||theta - theta_0||^2."""
        if not self.settings.l2:
            return Loss(value=loss.value.new_zeros(()))
        tensors = policies.tuned.tuned.tensors()
        learned = {name: tensors[name] for name in policies.start}
        return Loss(value=self.settings.l2 * weight_distance(learned, policies.start))


def weight_distance(tensors: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the scalar sum ||theta - theta_0||^2 over the learning weights theta; theta_0 are the pretrained weights."""
    return torch.stack([(tensor - reference[name]).square().sum() for name, tensor in tensors.items()]).sum()
