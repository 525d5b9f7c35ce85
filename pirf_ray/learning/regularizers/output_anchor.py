"""The output anchor: a penalty on changes of a sample's large scales from the base model's sample."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from envs.common.checks import not_negative
from envs.common.parts import PartSettings
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.losses import Batch, Loss
from pirf_ray.learning.regularizers.base import Regularizer, register
from pirf_ray.learning.rollouts.records import Prefix

ANCHOR_POOL = 4
"""Rows and columns of a cell of the average LP."""


@dataclass(frozen=True, kw_only=True)
class OutputAnchorSettings(PartSettings):
    """Settings of the output anchor."""

    anchor: float = 300.0
    """mu of mu * ||LP(x_0 - x_0^base)||^2 / ||x_0^base||^2; LP is a 4x4 average, x_0^base the base model's output of the prefix."""
    anchor_inputs: float = 1.0
    """Factor on mu for input channels, which the equation takes as given (source, coefficient). They are held at all scales."""

    def __post_init__(self) -> None:
        super().__post_init__()
        not_negative(self, "anchor", "anchor_inputs")


@register("anchor")
class OutputAnchor(Regularizer):
    """Change of each sample's large scales from the base model's sample, for objectives on prefixes."""

    Settings = OutputAnchorSettings

    @classmethod
    def needs_base_output(cls, settings: OutputAnchorSettings) -> bool:
        """Return whether prefixes must carry the base model's output: if the anchor is not 0."""
        return settings.anchor > 0

    def penalty(self, batch: Batch, policies: Policies, loss: Loss) -> Loss:
        """Return the mean anchor of the samples that the objective made. ValueError without the base model's output."""
        rollouts, settings = batch.rollouts, self.settings
        if not settings.anchor:
            return Loss(value=loss.value.new_zeros(()))
        if not isinstance(rollouts, Prefix) or rollouts.base_output is None or not loss.samples:
            raise ValueError(
                "the output anchor needs the base model's output of each prefix, and an objective that makes samples"
            )
        inputs = self.context.pde.input_channels
        anchors = [output_anchor(x, rollouts.base_output, inputs, settings.anchor_inputs) for x in loss.samples]
        mean = torch.stack(anchors).mean(0)
        return Loss(value=settings.anchor * mean.mean(), metrics={"anchor": mean.detach()})


def low_pass(x: torch.Tensor) -> torch.Tensor:
    """Return the average LP of x over 4x4 cells, (b, c, h, w) -> (b, c, h/4, w/4)."""
    return F.avg_pool2d(x, ANCHOR_POOL)


def output_anchor(
    x: torch.Tensor, base_output: torch.Tensor, inputs: Sequence[int] = (), input_weight: float = 1.0
) -> torch.Tensor:
    """Return ||LP(x_0 - x_0^base)||^2 / ||x_0^base||^2 (b,) of x = x_0 (b, c, h, w), model units. Norms are mean squares.

    The base model has the large scales right and the small scales wrong. So the anchor holds the large scales, and the reward
    changes the small scales. The channels ``inputs``, which the equation takes as given, are held at all scales with the
    weight ``input_weight``. Otherwise a reward gains by smoothing the source when the solution's small scales are noise.
    """
    change = x - base_output
    held = low_pass(change).square().mean((-2, -1))  # (b, c)
    if inputs:
        chosen = list(inputs)
        whole = input_weight * change[:, chosen].square().mean((-2, -1))
        held = held.index_copy(1, torch.tensor(chosen, device=x.device), whole)
    return held.mean(1) / base_output.square().flatten(1).mean(1).clamp_min(1e-12)
