"""PDEs that leave parts out: one without a solver, one known by samples only."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from envs.numerics.grids import Axis, Grid
from envs.numerics.normalization import Normalizer
from envs.numerics.operators import five_point_laplacian
from envs.pdes import PDE
from envs.pdes.samples import SampledPDE

ROWS = 50
CLOUDS_MEAN, CLOUDS_STD = 3.0, 2.0


class Heat(PDE):
    """Steady heat: lap T = 0. It has an operator and a condition, and no solver."""

    env_id = "Heat-v0"
    equation = "lap T = 0"
    channels = ("T",)
    units = "K"
    default_operator = "laplace"
    default_resolution = 8

    @property
    def grid(self) -> Grid:
        """Vertices of the unit square."""
        rows, columns = (Axis(name=name, extent=1.0, size=self.resolution, layout="vertex") for name in "yx")
        return Grid(rows=rows, columns=columns)

    @property
    def normalizer(self) -> Normalizer:
        """Hundreds of kelvin."""
        return Normalizer(scale=(0.01,), shift=(0.0,))

    @property
    def operators(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The 5-point Laplacian."""
        return {"laplace": lambda fields: five_point_laplacian(fields, self.grid.spacing)}

    @property
    def conditions(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """Mean square of the first row."""
        return {"cold": lambda fields: fields[:, 0, 0].square().mean(-1)}


class StatedHeat(Heat):
    """Heat whose class states the constants of its operator."""

    constants = {"laplace": (0.5, 2.0)}  # noqa: RUF012


def clouds(folder: Path, *, rows: int = ROWS, resolution: int = 8, suffix: str = "npy") -> type[SampledPDE]:
    """A class of stored samples in ``folder``. Each field's corner [0, 0] holds the number of its row."""
    fields = np.random.default_rng(0).normal(CLOUDS_MEAN, CLOUDS_STD, (rows, 2, resolution, resolution))
    fields[:, 0, 0, 0] = np.arange(rows)
    path = folder / f"clouds.{suffix}"
    if suffix == "npy":
        np.save(path, fields.astype("float32"))
    else:
        import h5py

        with h5py.File(path, "w") as file:
            file["fields"] = fields.astype("float32")

    class Clouds(SampledPDE):
        env_id, equation, units = "Clouds-v0", "none", "optical depth"
        channels, default_resolution, periodic = ("depth", "height"), resolution, (True, False)
        file = path

    return Clouds


def rows_of(fields: torch.Tensor) -> list[int]:
    """The rows of the file that samples come from."""
    return [int(row) for row in fields[:, 0, 0, 0]]
