"""Settings of the learning parameters."""

from dataclasses import dataclass

from envs.common.checks import not_negative, require
from pirf_ray.learning.parameters.layers import LayerMode


@dataclass(frozen=True, kw_only=True)
class ParameterSettings:
    """Settings of the learning parameters."""

    levels: int = 0
    """Number of top decoder levels that learn, with the output layer (layer-wise truncation). 0: all layers learn."""
    layer_mode: LayerMode = "freeze"
    """Layers below the learning levels. freeze: the exact gradient passes through them. truncate: it is cut at their outputs."""
    lora_rank: int = 0
    """Rank of the changes of the weights (LoRA). 0: changes of any rank."""

    def __post_init__(self) -> None:
        require(self.levels >= 0, f"--levels must be 0 (all layers) or more, got {self.levels}")
        not_negative(self, "lora_rank")
