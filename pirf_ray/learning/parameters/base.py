"""Settings of what learns."""

from dataclasses import dataclass

from envs.common.checks import not_negative, require
from pirf_ray.learning.parameters.layers import LayerMode


@dataclass(frozen=True, kw_only=True)
class ParameterSettings:
    """Which parameters learn."""

    levels: int = 0
    """Layer-wise truncation: this many top decoder levels learn, with the output layer. 0: all layers learn."""
    layer_mode: LayerMode = "freeze"
    """Below the learning levels: frozen with exact gradient through them (freeze), or gradient cut at their border (truncate)."""
    lora_rank: int = 0
    """Learn low-rank changes of this rank (LoRA) instead of whole weights. 0: whole weights."""

    def __post_init__(self) -> None:
        require(self.levels >= 0, f"--levels must be 0 (all layers) or more, got {self.levels}")
        not_negative(self, "lora_rank")
