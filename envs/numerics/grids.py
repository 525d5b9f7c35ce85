"""Grids: extent, size and layout of each axis. Every residual takes its spacing from the grid."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Layout = Literal["periodic", "vertex", "cell"]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """An axis of a uniform grid on [0, extent].

    ==========  =================  =====================================
    layout      points             spacing
    ==========  =================  =====================================
    periodic    x_j = j h          h = extent/size
    vertex      x_j = j h          h = extent/(size-1), both ends stored
    cell        x_j = (j + 1/2) h  h = extent/size
    ==========  =================  =====================================
    """

    name: str
    extent: float
    size: int
    layout: Layout

    def __post_init__(self) -> None:
        if self.size < 2:
            raise ValueError(f"axis {self.name!r} needs at least 2 points, got {self.size}")
        if not self.extent > 0:
            raise ValueError(f"axis {self.name!r} needs a positive extent, got {self.extent}")

    @property
    def spacing(self) -> float:
        """Distance h between neighbouring points, physical units."""
        return self.extent / (self.size - 1 if self.layout == "vertex" else self.size)

    @property
    def coordinates(self) -> np.ndarray:
        """Coordinates (size,) in physical units."""
        offset = 0.5 if self.layout == "cell" else 0.0
        return (np.arange(self.size) + offset) * self.spacing


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A two-dimensional grid of fields (..., rows.size, columns.size)."""

    rows: Axis
    columns: Axis

    @property
    def shape(self) -> tuple[int, int]:
        """Numbers of rows and columns."""
        return (self.rows.size, self.columns.size)

    @property
    def spacing(self) -> tuple[float, float]:
        """Spacings of rows and columns, physical units."""
        return (self.rows.spacing, self.columns.spacing)

    @property
    def periodic(self) -> tuple[bool, bool]:
        """Whether the row axis and the column axis are periodic."""
        return (self.rows.layout == "periodic", self.columns.layout == "periodic")
