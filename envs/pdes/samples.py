"""The base class of laws that are known by samples only: fields of an experiment, or of a solver that is not at hand.

>>> import tempfile
>>> import numpy as np
>>> folder = tempfile.TemporaryDirectory()
>>> np.save(f"{folder.name}/clouds.npy", np.random.default_rng(0).normal(3.0, 2.0, (50, 1, 8, 8)).astype("float32"))
>>> class Clouds(SampledPDE):
...     env_id, equation, units = "Clouds-v0", "none", "optical depth"
...     channels, default_resolution, periodic = ("depth",), 8, (True, True)
...     file = f"{folder.name}/clouds.npy"
>>> clouds = Clouds()
>>> clouds.available("train"), clouds.available("test")
(40, 10)
>>> clouds.solve(0, "test", range(3)).shape
torch.Size([3, 1, 8, 8])
>>> folder.cleanup()
"""

import os
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import h5py
import numpy as np
import torch

from envs.common.files import FileFormatError, absolute
from envs.numerics import seeding
from envs.numerics.grids import Axis, Grid
from envs.numerics.normalization import Normalizer
from envs.pdes.base import PDE, REQUIRED

DATASET = "fields"
"""Dataset of an HDF5 file that holds the fields, as in envs.data.datasets."""
TRAIN_STREAM = "train"
TRAIN_SHARE = 0.8
"""Share of the rows that the stream ``train`` draws from. All other streams draw from the rest."""
MIN_ROWS = 5
"""Smallest number of rows of which both parts have a row."""
MODEL_STD = 0.14
"""Standard deviation of a channel in model units. The noise levels of the pretraining presets are made for it."""
NORMALIZER_ROWS = 1024
"""Largest number of training rows that the mean and the standard deviation are measured on."""
DIGITS = 4
"""Significant digits of the measured scale and shift. More digits would differ between processors, and models would refuse them."""


class StoredFields:
    """A lazy reader of fields (n, c, h, w) in an HDF5 file or a .npy file. It reads the requested rows only.

    A reader may be sent to other processes or inherited by them. Each process opens the file for itself.
    """

    def __init__(self, path: Path) -> None:
        """Open a file. FileFormatError if it is missing, of another kind, or does not hold real numbers (n, c, h, w)."""
        self.path = path
        self._opened: tuple[int, Any] | None = None
        found = self._array
        self.shape: tuple[int, ...] = tuple(found.shape)
        if len(self.shape) != 4 or found.dtype.kind != "f":
            raise FileFormatError(f"{path}: fields must be real numbers (n, c, h, w), got {found.dtype} {self.shape}")
        state = path.stat()
        self.version: tuple[int, int] = (state.st_size, state.st_mtime_ns)

    @property
    def _array(self) -> Any:
        """The open array of this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), _open(self.path))
        return self._opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def read(self, rows: Sequence[int] | np.ndarray) -> torch.Tensor:
        """Return the rows (len(rows), c, h, w), float64. FileFormatError if a row is not finite."""
        array = self._array
        values = np.empty((len(rows), *self.shape[1:]))
        for place, row in enumerate(rows):
            values[place] = array[int(row)]
            if not np.isfinite(values[place]).all():
                raise FileFormatError(f"{self.path}: sample {row} is not finite")
        return torch.from_numpy(values)


def _open(path: Path) -> Any:
    if not path.is_file():
        raise FileFormatError(f"{path}: no such file")
    try:
        if path.suffix == ".npy":
            return np.load(path, mmap_mode="r")
        if path.suffix in (".h5", ".hdf5"):
            found = h5py.File(path, "r")[DATASET]
            if isinstance(found, h5py.Dataset):
                return found
            raise KeyError(f"{DATASET!r} is not a dataset")
    except (OSError, ValueError, KeyError) as error:
        raise FileFormatError(f"{path}: cannot be read ({error})") from None
    raise FileFormatError(f"{path}: stored samples must be a .h5, .hdf5 or .npy file")


class SampledPDE(PDE):
    """A law of fields that is known by stored samples only. They stand for the exact data of a solver.

    A subclass sets the class attributes of a PDE and ``file``. The stream ``train`` draws from the first 80 % of the rows and
    every other stream from the last 20 %, so that no training field is used to evaluate. The fields are square.

    The PDE has no operators unless the subclass defines them.
    """

    required = (*REQUIRED, "file")
    solver = "none: stored samples"
    file: ClassVar[str | Path]
    """HDF5 file with the dataset ``fields``, or .npy file, of fields (n, c, h, w), physical units.

    A relative path starts in the folder of the module that defines the class. The file must be readable in every process.
    """
    periodic: ClassVar[tuple[bool, bool]] = (False, False)
    """Whether the rows and the columns are periodic."""

    def __init__(self, resolution: int | None = None, **parameters: float) -> None:
        """Open the file. FileFormatError if it is not readable, ValueError if its shape is not the shape of this PDE."""
        super().__init__(resolution, **parameters)
        self._stored = StoredFields(self.path())
        rows, *shape = self._stored.shape
        if rows < MIN_ROWS or tuple(shape) != self.shape:
            wanted = f"at least {MIN_ROWS} fields {self.shape}"
            raise ValueError(f"{self.env_id} needs {wanted}, got {rows} fields {tuple(shape)} in {self._stored.path}")

    @classmethod
    def path(cls) -> Path:
        """Return the absolute path of the file."""
        owner = next(c for c in cls.__mro__ if "file" in vars(c))
        module = getattr(sys.modules.get(owner.__module__), "__file__", None)
        return absolute((Path(module).parent if module else Path()) / Path(cls.file).expanduser())

    @property
    def identity(self) -> tuple[object, ...]:
        """Values that decide the data: also the path, the size and the time of the file."""
        return (*super().identity, str(self._stored.path), self._stored.version)

    @property
    def grid(self) -> Grid:
        """The grid of the unit square with the spacing 1/n: periodic points or cells."""
        names, sizes = ("y", "x"), (self.resolution, self.resolution)
        rows, columns = (
            Axis(name=name, extent=1.0, size=size, layout="periodic" if periodic else "cell")
            for name, size, periodic in zip(names, sizes, self.periodic, strict=True)
        )
        return Grid(rows=rows, columns=columns)

    @property
    def normalizer(self) -> Normalizer:
        """The conversion to mean 0 and the standard deviation .14 in each channel, measured once on training rows."""
        return _measured_normalizer(self)

    def solve(self, seed: int, stream: str, sample_ids: Sequence[int]) -> torch.Tensor:
        """Return stored samples (len(sample_ids), c, h, w), float64: a fixed permutation for each seed and stream.

        ValueError if an id is not below the number of samples of the stream.
        """
        rows = self._rows(stream)
        wrong = [int(i) for i in sample_ids if not 0 <= i < len(rows)]
        if wrong:
            raise ValueError(
                f"{self.env_id} has {len(rows)} stored samples for the stream {stream!r}, with the ids 0 to {len(rows) - 1}; "
                f"got the id {wrong[0]}"
            )
        order = seeding.generator(seed, f"{stream} rows", 0).permutation(len(rows))
        return self._stored.read([rows[order[int(i)]] for i in sample_ids])

    def available(self, stream: str) -> int:
        """Return the number of stored samples of the stream."""
        return len(self._rows(stream))

    def _rows(self, stream: str) -> range:
        """Return the rows of the file that the stream draws from."""
        count = self._stored.shape[0]
        split = int(TRAIN_SHARE * count)
        return range(split) if stream == TRAIN_STREAM else range(split, count)


@lru_cache(maxsize=16)
def _measured_normalizer(pde: SampledPDE) -> Normalizer:
    """Return the normalizer of evenly spaced training rows. ValueError if a channel is constant."""
    count = pde.available(TRAIN_STREAM)
    used = min(count, NORMALIZER_ROWS)
    fields = pde._stored.read([i * count // used for i in range(used)])
    means, stds = fields.mean((0, 2, 3)).tolist(), fields.std((0, 2, 3), correction=0).tolist()
    constant = [name for name, std in zip(pde.channels, stds, strict=True) if std == 0]
    if constant:
        raise ValueError(f"{pde.env_id}: the channel {', '.join(constant)} has the same value everywhere and cannot be scaled")
    scale = tuple(float(f"{MODEL_STD / std:.{DIGITS}g}") for std in stds)
    shift = tuple(float(f"{-mean * factor:.{DIGITS}g}") for mean, factor in zip(means, scale, strict=True))
    return Normalizer(scale=scale, shift=shift)
