"""Settings of the regularizers."""

from dataclasses import dataclass

from envs.common.checks import not_negative


@dataclass(frozen=True, kw_only=True)
class RegularizationSettings:
    """Strengths of the regularizers, which hold the tuned model near the base model."""

    l2: float = 0.0
    """lambda of lambda * sum ||theta - theta_0||^2 over the learning weights theta; theta_0 are the pretrained weights."""
    anchor: float = 300.0
    """mu of mu * ||LP(x_0 - x_0^base)||^2 / ||x_0^base||^2; LP is a 4x4 average, x_0^base the base model's output of the prefix."""
    anchor_inputs: float = 1.0
    """Factor on mu for input channels, which the equation takes as given (source, coefficient). They are held at all scales."""

    def __post_init__(self) -> None:
        not_negative(self, "l2", "anchor", "anchor_inputs")
