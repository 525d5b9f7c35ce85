"""Strengths of the regularizers."""

from dataclasses import dataclass

from envs.common.checks import not_negative


@dataclass(frozen=True, kw_only=True)
class RegularizationSettings:
    """What holds the tuned model to the pretrained one."""

    l2: float = 0.0
    """lambda of lambda * sum ||theta - theta_0||^2 over the learning weights, theta_0 the pretrained ones."""
    anchor: float = 300.0
    """mu of mu * ||LP(x_0 - x_0^base)||^2 / ||x_0^base||^2, LP a 4x4 average, x_0^base the base model's output from the same prefix."""
    anchor_inputs: float = 1.0
    """Factor on mu for the channels that the equation takes as given (source, coefficient), which are held at all scales."""

    def __post_init__(self) -> None:
        not_negative(self, "l2", "anchor", "anchor_inputs")
