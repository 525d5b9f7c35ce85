"""Import of other codes' fields: PDEBench's HDF5 files and ``.npy`` stacks (DiffusionPDE), by an explicit description.

Nothing is interpolated: the points that the description takes must be the PDE's grid. Nothing is unpickled or loaded whole.
The public layouts are:

==============================  =================================================================================
source                          arrays
==============================  =================================================================================
PDEBench (arXiv 2210.07182)     ``tensor`` (sample, t, x), ``x-coordinate`` at cell centres, and ``t-coordinate``
                                with an entry more than ``tensor`` has rows
PDEBench, Darcy                 ``nu`` (sample, x, y) and ``tensor`` (sample, 1, x, y)
DiffusionPDE (arXiv 2406.17763) an array (sample, x, y) per channel, Burgers (sample, x, t); or a directory with a
                                file (x, y, channel) per sample, shifted and scaled for its network
==============================  =================================================================================
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast, get_args

import h5py
import numpy as np
import torch

from envs.data.datasets import Progress, write_fields
from envs.data.descriptions import SAMPLE, AxisSource, ChannelSource, Description, ImportDescriptionError
from envs.numerics.grids import Axis, Layout
from envs.numerics.seeding import chunks
from envs.pdes.base import PDE

GRID_TOLERANCE = 1e-3
"""Largest distance of an imported point from the grid's point, in spacings. Rounding to float32 passes, half a cell does not."""
CHUNK_SIZE = 64
HASH_BLOCK = 2**20
"""Bytes that are hashed at a time."""
SUSPICIOUS_RATIO = 10.0
"""Ratio of the imported fields' residual to the residual of our own solver's fields above which a warning is due."""
FLOOR_SAMPLES = 16
"""Samples of our own solver to which imported fields are compared."""


class _Array:
    """The array of a channel, with its axes by name. It is read lazily."""

    def __init__(self, channel: str, source: ChannelSource, axes: Mapping[str, AxisSource], grid_axes: tuple[str, str]) -> None:
        self.channel, self.source, self.grid_axes = channel, source, grid_axes
        self.where = f"channel {channel!r} ({source.file}{'' if source.dataset is None else ', dataset ' + repr(source.dataset)})"
        self._slices = {name: axis.points for name, axis in axes.items()}
        self.files = self._find_files()
        self.array = self._open(self.files[0])
        stored = (SAMPLE, *source.axes) if source.file.is_dir() else source.axes
        shape = (len(self.files), *self.array.shape) if source.file.is_dir() else self.array.shape
        self._check_axes(stored, shape)
        self.sizes = dict(zip(stored, shape, strict=True))
        self.samples = range(self.sizes[SAMPLE])[self._slices.get(SAMPLE, slice(None))]

    def _find_files(self) -> list[Path]:
        path = self.source.file
        if not path.exists():
            raise FileNotFoundError(f"{self.where}: no such file")
        if not path.is_dir():
            return [path]
        found = sample_files(path)
        if not found:
            raise ImportDescriptionError(f"{self.where}: no .npy file in this directory")
        return found

    def _open(self, path: Path) -> Any:
        """Return an HDF5 dataset or a memory-mapped array. Nothing is loaded whole or unpickled."""
        array = self._npy(path) if self.source.dataset is None else self._hdf5(path, self.source.dataset)
        if array.dtype.kind not in "fiu":
            raise ImportDescriptionError(f"{self.where}: values have type {array.dtype}, expected real numbers")
        return array

    def _npy(self, path: Path) -> np.ndarray:
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, OSError, EOFError) as error:
            raise ImportDescriptionError(f"{self.where}: {path.name} is not a .npy file of numbers ({error})") from None
        if not isinstance(array, np.ndarray):
            raise ImportDescriptionError(f"{self.where}: {path.name} holds several arrays, expected a .npy file")
        return array

    def _hdf5(self, path: Path, dataset: str) -> h5py.Dataset:
        try:
            file = h5py.File(path, "r")
        except OSError as error:
            raise ImportDescriptionError(f"{self.where}: not a readable HDF5 file ({error})") from None
        found = file.get(dataset)
        if not isinstance(found, h5py.Dataset):
            raise ImportDescriptionError(f"{self.where}: no such dataset; the file has {', '.join(map(repr, file)) or 'none'}")
        return found

    def _check_axes(self, names: tuple[str, ...], shape: tuple[int, ...]) -> None:
        if len(names) != len(shape):
            raise ImportDescriptionError(
                f"{self.where}: the array has shape {tuple(shape)}, axes name {len(names)}: {', '.join(names)}"
            )
        for name in (SAMPLE, *self.grid_axes):
            if names.count(name) != 1:
                raise ImportDescriptionError(f"{self.where}: axes must name {name!r} once, got {', '.join(names)}")
        others = {name: size for name, size in zip(names, shape, strict=True) if name not in (SAMPLE, *self.grid_axes)}
        if len(set(names)) < len(names) or others.keys() != self.source.index.keys():
            wanted = ", ".join(others) or "none"
            given = ", ".join(self.source.index) or "none"
            raise ImportDescriptionError(f"{self.where}: index must give a position on each other axis ({wanted}), got {given}")
        for name, size in others.items():
            if self.source.index[name] >= size:
                raise ImportDescriptionError(
                    f"{self.where}: index {name}={self.source.index[name]}, the axis has {size} positions"
                )

    def read(self, ids: range) -> np.ndarray:
        """Return the fields (len(ids), rows, columns) of the given samples, float64, in physical units."""
        rows = self.samples[ids.start : ids.stop]
        if self.source.file.is_dir():
            values = np.stack([self._fields(self._open(self.files[row]), None) for row in rows])
        else:
            values = self._fields(self.array, slice(rows.start, rows.stop, rows.step))
        return values * self.source.scale + self.source.offset

    def _fields(self, array: Any, rows: slice | None) -> np.ndarray:
        expected = tuple(self.sizes[name] for name in self.source.axes)
        if rows is None and array.shape != expected:
            raise ImportDescriptionError(f"{self.where}: a file has shape {array.shape}, the first has {expected}")
        take = {SAMPLE: rows, **self.source.index}
        selection = tuple(take[n] if n in take else self._slices.get(n, slice(None)) for n in self.source.axes)
        values = np.asarray(array[selection], dtype=np.float64)
        kept = [name for name in self.source.axes if name not in self.source.index]
        wanted = [name for name in (SAMPLE, *self.grid_axes) if name in kept]
        return values.transpose([kept.index(name) for name in wanted])


def sample_files(directory: Path) -> list[Path]:
    """Return the .npy files of a directory, sorted by the numbers in their names: 2 before 10."""

    def key(path: Path) -> list[tuple[int, str]]:
        return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]

    return sorted(directory.glob("*.npy"), key=key)


class ImportedFields:
    """The samples of a PDE that a description names. They are read lazily."""

    def __init__(self, pde: PDE, description: Description) -> None:
        """Check the description against the files and the PDE's channels and grid. ImportDescriptionError if they differ."""
        self.pde, self.description = pde, description
        names = (pde.grid.rows.name, pde.grid.columns.name)
        if description.channels.keys() != set(pde.channels):
            given = ", ".join(description.channels) or "none"
            raise ImportDescriptionError(f"channels must be those of {pde.env_id} ({', '.join(pde.channels)}), got {given}")
        for name in description.axes:
            if name not in (SAMPLE, *names):
                raise ImportDescriptionError(
                    f"unknown axis {name!r}; {pde.env_id} has {', '.join(names)}, and the samples have {SAMPLE!r}"
                )
        self.arrays = [_Array(name, description.channels[name], description.axes, names) for name in pde.channels]
        for axis in (pde.grid.rows, pde.grid.columns):
            for array in self.arrays:
                check_axis(axis, description.axes.get(axis.name, AxisSource()), array)
        counts = {array.channel: len(array.samples) for array in self.arrays}
        if len(set(counts.values())) > 1:
            raise ImportDescriptionError(f"channels differ in their number of samples: {counts}")

    def __len__(self) -> int:
        return len(self.arrays[0].samples)

    def read(self, ids: range) -> torch.Tensor:
        """Return the fields (len(ids), c, h, w) of the given samples, float64, in physical units."""
        return torch.from_numpy(np.stack([array.read(ids) for array in self.arrays], axis=1))


def check_axis(axis: Axis, source: AxisSource, array: _Array) -> None:
    """Raise ImportDescriptionError, with the first difference, unless the points taken are the points of the PDE's axis."""
    size = array.sizes[axis.name]
    taken = _coordinates(axis.name, source, array, size)[source.points] - source.origin
    where = f"{array.where}, axis {axis.name!r}"
    wanted = f"{axis.size} points from {axis.coordinates[0]:.6g} to {axis.coordinates[-1]:.6g} ({axis.layout}, spacing {axis.spacing:.6g})"
    if not len(taken):
        raise ImportDescriptionError(f"{where}: stride {source.stride} takes none of {size} points, the grid has {wanted}")
    given = f"{len(taken)} points from {taken[0]:.6g} to {taken[-1]:.6g} with stride {source.stride}"
    if len(taken) != axis.size:
        raise ImportDescriptionError(f"{where}: gives {given}, the grid has {wanted}")
    distance = np.abs(taken - axis.coordinates)
    if not (distance <= GRID_TOLERANCE * axis.spacing).all():
        i = int(np.argmax(~(distance <= GRID_TOLERANCE * axis.spacing)))
        point = f"point {i} lies at {taken[i]:.6g}, expected {axis.coordinates[i]:.6g}"
        raise ImportDescriptionError(f"{where}: gives {given}, the grid has {wanted}; {point}. Nothing is interpolated")


def _coordinates(name: str, source: AxisSource, array: _Array, size: int) -> np.ndarray:
    """Return the coordinates (size,) of the whole stored axis."""
    dataset = source.coordinates
    if source.extent is not None or source.layout is not None:
        if source.extent is None or source.layout not in get_args(Layout) or dataset is not None:
            raise ImportDescriptionError(
                f"axis {name!r}: give coordinates, or extent and layout ({', '.join(get_args(Layout))}), "
                f"got coordinates {dataset}, extent {source.extent}, layout {source.layout}"
            )
        return Axis(name=name, extent=source.extent, size=size, layout=cast(Layout, source.layout)).coordinates
    if not isinstance(array.array, h5py.Dataset):
        raise ImportDescriptionError(f"axis {name!r}: .npy files hold no coordinates; give its extent and layout")
    dataset = dataset or f"{name}-coordinate"
    found = array.array.file.get(dataset)
    if not isinstance(found, h5py.Dataset) or found.ndim != 1 or found.dtype.kind not in "fiu" or len(found) < size:
        raise ImportDescriptionError(
            f"axis {name!r}: {array.source.file} has no dataset {dataset!r} of {size} coordinates; "
            "name another dataset, or give the axis' extent and layout"
        )
    return np.asarray(found[:size], dtype=np.float64)


# --- the import ---


def import_fields(
    path: Path,
    fields: ImportedFields,
    *,
    num_samples: int | None = None,
    chunk_size: int = CHUNK_SIZE,
    progress: Progress = iter,
    hashing: Progress = iter,
    overwrite_partial: bool = False,
) -> dict[str, float]:
    """Write the described samples, by default all, in our format. Return their floors.

    A stopped import is continued as in ``write_fields``. The attribute ``stream`` is ``imported:FILE`` and ``seed`` is 0. The
    attribute ``source`` holds the description, and the name and the SHA-256 of every file or directory in it. ``progress``
    gets ranges of samples, and ``hashing`` gets ranges of MiB.
    """
    count = len(fields) if num_samples is None else num_samples
    if not 1 <= count <= len(fields):
        raise ValueError(f"num_samples must be in [1, {len(fields)}], the samples that the description takes, got {count}")
    sources = list(dict.fromkeys(array.source.file for array in fields.arrays))
    source = {"files": {file.name: sha256(file, hashing) for file in sources}, **plain(fields.description)}
    attributes: dict[str, str | int] = {
        "solver": "imported",
        "seed": 0,
        "stream": f"imported:{sources[0].name}",
        "source": json.dumps(source, sort_keys=True),
    }
    return write_fields(
        path,
        fields.pde,
        fields.read,
        attributes,
        num_samples=count,
        chunk_size=chunk_size,
        progress=progress,
        overwrite_partial=overwrite_partial,
    )


def plain(description: Description) -> dict[str, Any]:
    """Return the description as plain values for JSON, with file names without directories."""
    channels = {name: {**asdict(source), "file": source.file.name} for name, source in description.channels.items()}
    return {"channels": channels, "axes": {name: asdict(axis) for name, axis in description.axes.items()}}


def sha256(path: Path, progress: Progress = iter) -> str:
    """Return the SHA-256 of a file or a directory.

    A directory has the hash of its .npy files in their order: for each file a NUL, its name and its bytes.
    """
    files = sample_files(path) if path.is_dir() else [path]
    digest = hashlib.sha256()
    blocks = [(file, block) for file in files for block in range(-(-file.stat().st_size // HASH_BLOCK))]
    for part in progress(list(chunks(len(blocks), 64))):
        for file, block in blocks[part.start : part.stop]:
            if path.is_dir() and block == 0:
                digest.update(b"\0" + file.name.encode())
            with file.open("rb") as opened:
                opened.seek(block * HASH_BLOCK)
                digest.update(opened.read(HASH_BLOCK))
    return digest.hexdigest()


def solver_floors(pde: PDE, samples: int = FLOOR_SAMPLES) -> dict[str, float]:
    """Return the mean residuals of our own solver's fields by operator. The fields are rounded to float32, as in files."""
    fields = pde.solve(0, "import", range(samples)).float().double()
    return {name: pde.residual(fields, name).mean().item() for name in pde.operators}


def suspicion(pde: PDE, floors: Mapping[str, float]) -> str | None:
    """Return a warning if the imported fields have a far larger residual than our own solver's fields, else None."""
    if not (pde.provides("solve") and pde.provides("operators")):
        return None
    name = pde.default_operator
    own = solver_floors(pde)[name]
    if floors[name] <= SUSPICIOUS_RATIO * own:
        return None
    return (
        f"the {name} residual of the imported fields is {floors[name]:.3g}, {floors[name] / max(own, 1e-300):.3g} times the "
        f"residual {own:.3g} of our own solver's fields: check units (scale, offset), the order of axes, the grid and "
        f"the equation's parameters ({pde.equation}; {pde.parameters or 'no parameters'})"
    )
