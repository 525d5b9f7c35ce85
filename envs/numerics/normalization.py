"""Conversion between physical and model units: model = scale * physical + shift, per channel."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Normalizer:
    """An affine map per channel between physical units and model units, which are dimensionless.

    ``scale`` and ``shift`` have one value per channel.
    """

    scale: tuple[float, ...]
    shift: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.scale) != len(self.shift):
            raise ValueError(f"scale has {len(self.scale)} channels, shift has {len(self.shift)}")
        if any(s == 0 for s in self.scale):
            raise ValueError(f"scale must not contain 0, got {self.scale}")

    def _column(self, values: tuple[float, ...], like: torch.Tensor) -> torch.Tensor:
        if like.shape[-3] != len(values):
            raise ValueError(f"expected {len(values)} channels, got fields of shape {tuple(like.shape)}")
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]

    def to_model(self, fields: torch.Tensor) -> torch.Tensor:
        """Return physical fields (..., c, h, w) in model units."""
        return fields * self._column(self.scale, fields) + self._column(self.shift, fields)

    def to_physical(self, x: torch.Tensor) -> torch.Tensor:
        """Return fields x (..., c, h, w) of model units in physical units."""
        return (x - self._column(self.shift, x)) / self._column(self.scale, x)
