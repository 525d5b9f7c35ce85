"""Self-describing HDF5 files of fields: written in chunks that survive a kill, validated, and read lazily.

The dataset ``fields`` (sample, channel, row, column) is float32 in physical units. The root attributes are:

===========================================================  =================================================
attributes                                                   type
===========================================================  =================================================
``format, env_id, equation, units, solver, stream``          text
``resolution, seed``                                         integer
``channels, grid, parameters``                               JSON
``floors``: mean residual of each operator over the samples  JSON
``source``, of imported fields only: their description       JSON
===========================================================  =================================================

An old file without ``parameters`` has the PDE's default parameters. ``fields`` is contiguous, so that a random row costs a
read of this row alone.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from envs.data.chunks import ChunkDirectory, DataWriteError, Solved, in_order, refuse_existing_file
from envs.numerics.seeding import MAX_SEED, chunks
from envs.pdes.base import PDE, make_pde

__all__ = ["DataWriteError", "FieldFile", "InvalidDataError", "describe", "validate", "violations", "write", "write_fields"]

FORMAT = "pirf_ray-fields-1"
REQUIRED = ("format", "env_id", "equation", "channels", "units", "grid", "resolution", "solver", "seed", "stream", "floors")
OPTIONAL = ("parameters", "source")
INTEGERS = ("resolution", "seed")
JSON_TYPES: dict[str, type] = {"channels": list, "grid": dict, "floors": dict, "parameters": dict, "source": dict}
VALIDATION_ROWS = 256
CHUNK_SIZE = 256

Progress = Callable[[Iterable[range]], Iterable[range]]
"""A wrapper of the ranges of samples that are still to be made, such as a progress bar."""
Produce = Callable[[range], torch.Tensor]
"""A function of sample ids alone that returns their fields (len(ids), c, h, w), float64."""


class InvalidDataError(ValueError):
    """An error about a data file that breaks the layout. Its message lists every violation."""


def describe(pde: PDE) -> dict[str, str | int]:
    """Return the root attributes that name the equation, the grid and the units of a file's fields. Lists are JSON."""
    return {
        "env_id": pde.env_id,
        "equation": pde.equation,
        "channels": json.dumps(pde.channels),
        "units": pde.units,
        "grid": json.dumps(asdict(pde.grid)),
        "resolution": pde.resolution,
        "parameters": json.dumps(pde.parameters, sort_keys=True),
        "solver": pde.solver,
    }


# --- writing ---


def write(
    path: Path,
    pde: PDE,
    *,
    num_samples: int,
    seed: int,
    stream: str,
    chunk_size: int = CHUNK_SIZE,
    progress: Progress = iter,
    workers: int = 1,
    overwrite_partial: bool = False,
) -> dict[str, float]:
    """Write ``num_samples`` samples, solved in ``workers`` processes, and return the floors. See ``write_fields``."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in [0, {MAX_SEED}], got {seed}")
    return write_fields(
        path,
        pde,
        partial(pde.solve, seed, stream),
        {"seed": seed, "stream": stream},
        num_samples=num_samples,
        chunk_size=chunk_size,
        progress=progress,
        workers=workers,
        overwrite_partial=overwrite_partial,
    )


def write_fields(
    path: Path,
    pde: PDE,
    produce: Produce,
    attributes: Mapping[str, str | int],
    *,
    num_samples: int,
    chunk_size: int = CHUNK_SIZE,
    progress: Progress = iter,
    workers: int = 1,
    overwrite_partial: bool = False,
) -> dict[str, float]:
    """Write the fields of ``produce`` chunk by chunk, and return the floors. ``path`` appears only when it is complete.

    If the process is stopped or killed, the finished chunks stay in ``PATH.partial``. The same call then makes the missing
    chunks and ends with the bits of an undisturbed call, whatever ``workers``. ``progress`` gets the ranges of the missing
    chunks. ``attributes`` (seed, stream, ...) complete ``describe(pde)``.

    The call needs memory for a chunk, or for two chunks per worker with several workers. It needs disk space for twice the
    data at the end. Several workers are spawned processes, so a script needs its ``if __name__ == "__main__"``.

    ==================  ==========================================================================================
    error               reason
    ==================  ==========================================================================================
    FileExistsError     ``path`` exists: data are never overwritten
    ValueError          ``PATH.partial`` belongs to another request (``overwrite_partial`` starts over), or a sample
                        is not finite
    DataWriteError      the disk is full, or another process writes this file
    ==================  ==========================================================================================
    """
    for name, value in (("num_samples", num_samples), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    ranges = list(chunks(num_samples, chunk_size))
    refuse_existing_file(path)
    stored: dict[str, str | int] = {**describe(pde), **attributes, "format": FORMAT}
    request = {**stored, "num_samples": num_samples, "chunk_size": chunk_size}
    with ChunkDirectory(path, request, overwrite=overwrite_partial) as directory:
        try:
            missing = [ids for ids in ranges if not directory.holds(ids)]
            with closing(in_order(partial(_solve_chunk, pde, produce), missing, workers)) as solved:
                for _, (ids, chunk) in zip(progress(missing), solved, strict=False):
                    directory.store(ids, chunk)
            return _assemble(directory, ranges, pde, stored)
        except KeyboardInterrupt:
            if directory.empty:
                raise
            done = sum(len(ids) for ids in ranges if directory.holds(ids))
            kept = f"stopped; {done} of {num_samples} samples are kept in {directory.directory}"
            raise KeyboardInterrupt(f"{kept}; the same call continues from there") from None


def _solve_chunk(pde: PDE, produce: Produce, ids: range) -> Solved:
    fields = produce(ids)
    stored = fields.float().numpy()
    bad = np.flatnonzero(~np.isfinite(stored).all(axis=(1, 2, 3)))
    if bad.size:
        raise ValueError(f"sample {ids[int(bad[0])]} is not finite; {bad.size} of samples {ids.start} to {ids.stop - 1} are not")
    return stored, np.array([float(pde.residual(fields, name).sum()) for name in pde.operators])


def _assemble(directory: ChunkDirectory, ranges: list[range], pde: PDE, attributes: Mapping[str, str | int]) -> dict[str, float]:
    """Make the HDF5 file of all chunks, and return the floors."""
    num_samples, sums = ranges[-1].stop, np.zeros(len(pde.operators))
    with directory.explained(), h5py.File(directory.temporary, "w") as file:
        fields = file.create_dataset("fields", (num_samples, *pde.shape), dtype="f4")
        for ids in ranges:
            fields[ids.start : ids.stop], chunk_sums = directory.load(ids)
            sums += chunk_sums
        floors = {name: float(total / num_samples) for name, total in zip(pde.operators, sums, strict=True)}
        file.attrs.update({**attributes, "floors": json.dumps(floors)})
    directory.finish()
    return floors


# --- validation ---


def violations(path: Path, pde: PDE | None = None, *, contents: bool = True) -> list[str]:
    """Return everything that is wrong with the file: an empty list if it is valid.

    With ``pde`` the file must belong to this PDE and grid. ``contents=False`` leaves out the check that the fields are finite,
    which reads them all.
    """
    if not path.is_file():
        return [f"{path}: no such file"]
    try:
        with h5py.File(path, "r") as file:
            return [f"{path}: {problem}" for problem in _file_violations(file, pde, contents)]
    except OSError as error:
        return [f"{path}: not a readable HDF5 file ({error})"]


def validate(path: Path, pde: PDE | None = None, *, contents: bool = True) -> None:
    """Raise InvalidDataError with every violation if the file is not valid. See ``violations``."""
    found = violations(path, pde, contents=contents)
    if found:
        raise InvalidDataError("; ".join(found))


def _file_violations(file: h5py.File, pde: PDE | None, contents: bool) -> list[str]:
    values, found = _attributes(file)
    if pde is None and {"env_id", "resolution", "parameters"} <= values.keys():
        try:
            pde = make_pde(values["env_id"], values["resolution"], **values["parameters"])
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            found.append(str(error))
    if pde is not None:
        found += _foreign(values, pde)
    if other := elsewhere(file, "fields"):
        return [*found, other]
    fields = file.get("fields")
    if not isinstance(fields, h5py.Dataset):
        return [*found, "dataset 'fields' is missing"]
    return found + _field_violations(fields, pde, contents)


def elsewhere(group: h5py.Group, name: str) -> str:
    """Return what is wrong with a dataset whose numbers lie in another file, else an empty text.

    Such a file could name any other file of its reader.
    """
    link = group.get(name, getlink=True)
    if isinstance(link, h5py.ExternalLink):
        return f"dataset {name!r} is a link into another file, {link.filename!r}: its numbers must be its own"
    found = group.get(name)
    if isinstance(found, h5py.Dataset) and (found.external or found.is_virtual):
        return f"dataset {name!r} has its numbers in other files: they must be its own"
    return ""


def _attributes(file: h5py.File) -> tuple[dict[str, Any], list[str]]:
    """Return the decoded root attributes that are sound by themselves, and what is wrong with the others."""
    values, found = {}, []
    for name in (*REQUIRED, *OPTIONAL):
        if name in file.attrs:
            try:
                values[name] = _decoded(name, file.attrs[name])
            except Exception as error:  # h5py raises many types at content it cannot represent
                found.append(f"attribute {name!r}: {error}")
        elif name in REQUIRED:
            found.append(f"attribute {name!r} is missing")
        elif name == "parameters":
            values[name] = {}
    if values.get("format", FORMAT) != FORMAT:
        found.append(f"format is {values['format']!r}, expected {FORMAT!r}")
    if not 0 <= values.get("seed", 0) <= MAX_SEED:
        found.append(f"seed must be in [0, {MAX_SEED}], got {values['seed']}")
    return values, found


def _decoded(name: str, value: Any) -> Any:
    """Return the integer, text or JSON value of an attribute. ValueError names its actual type and value."""
    shown = f"{type(value).__name__} {str(value)[:60]!r}"
    if name in INTEGERS:
        if not isinstance(value, int | np.integer) or isinstance(value, bool):
            raise ValueError(f"expected an integer, got {shown}")
        return int(value)
    text = value.decode() if isinstance(value, bytes) else value
    if not isinstance(text, str):
        raise ValueError(f"expected text, got {shown}")
    if name not in JSON_TYPES:
        return text
    try:
        decoded: Any = json.loads(text)
    except (ValueError, RecursionError):
        decoded = None
    if not isinstance(decoded, JSON_TYPES[name]):
        raise ValueError(f"expected a JSON {JSON_TYPES[name].__name__}, got {shown}")
    if name in ("floors", "parameters"):
        numbers: Any = decoded
        for key, number in numbers.items():
            if not isinstance(number, int | float) or isinstance(number, bool) or not -math.inf < number < math.inf:
                raise ValueError(f"{key!r} must be a finite number, got {str(number)[:60]}")
    return decoded


def _foreign(values: Mapping[str, Any], pde: PDE) -> list[str]:
    """Return the attributes that belong to another PDE, grid or parameter."""
    found = []
    if values.get("env_id", pde.env_id) != pde.env_id:
        found.append(f"holds {values['env_id']}, expected {pde.env_id}")
    expected = {
        "resolution": pde.resolution,
        "channels": list(pde.channels),
        "grid": asdict(pde.grid),
        "parameters": pde.parameters,
    }
    if "parameters" in values:
        values = {**values, "parameters": {**pde.default_parameters, **values["parameters"]}}
    return found + [
        f"{name} is {values[name]}, expected {wanted}"
        for name, wanted in expected.items()
        if name in values and values[name] != wanted
    ]


def _field_violations(fields: h5py.Dataset, pde: PDE | None, contents: bool) -> list[str]:
    found = []
    if pde is not None and (fields.ndim != 4 or fields.shape[1:] != pde.shape):
        found.append(f"fields have shape {fields.shape}, expected (samples, {', '.join(map(str, pde.shape))}) at this resolution")
    elif pde is None and fields.ndim != 4:
        found.append(f"fields have shape {fields.shape}, expected (samples, channels, rows, columns)")
    if fields.dtype.kind != "f":
        found.append(f"fields have type {fields.dtype}, expected a floating-point type")
    if found:
        return found
    if fields.shape[0] == 0:
        return ["fields hold no sample"]
    if not contents:
        return []
    bad = [i for rows in chunks(fields.shape[0], VALIDATION_ROWS) for i in _nonfinite(fields, rows)]
    return [f"{len(bad)} of {fields.shape[0]} samples are not finite, first sample {bad[0]}"] if bad else []


def _nonfinite(fields: h5py.Dataset, rows: range) -> list[int]:
    finite = np.isfinite(fields[rows.start : rows.stop]).all(axis=(1, 2, 3))
    return [rows.start + int(i) for i in np.flatnonzero(~finite)]


# --- reading ---


class FieldFile:
    """A lazy reader of a data file: it reads the requested rows only, float32 in physical units.

    A row that is not finite is refused when it is read. A reader may be sent to other processes or inherited by them. Each
    process opens the file for itself.
    """

    def __init__(self, path: Path, pde: PDE) -> None:
        """Open and validate a file, except for its fields. InvalidDataError lists every violation."""
        validate(path, pde, contents=False)
        self.path = path
        self._opened: tuple[int, h5py.File] | None = None
        attributes = self._file.attrs
        self.floors: dict[str, float] = _decoded("floors", attributes["floors"])
        self.seed = int(attributes["seed"])
        self.stream = str(_decoded("stream", attributes["stream"]))

    @property
    def _file(self) -> h5py.File:
        """The open file of this process."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), h5py.File(self.path, "r"))
        return self._opened[1]

    @property
    def _fields(self) -> h5py.Dataset:
        return self._file["fields"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}

    def __len__(self) -> int:
        return int(self._fields.shape[0])

    def read(self, indices: np.ndarray | range) -> torch.Tensor:
        """Return the fields (len(indices), c, h, w) of the given rows in the given order. Each row is read once."""
        rows, inverse = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        fields = self._fields
        if rows.size and not 0 <= rows[0] <= rows[-1] < len(fields):
            raise IndexError(f"samples must be in [0, {len(fields) - 1}], got {rows[0]} to {rows[-1]}")
        values = np.empty((len(rows), *fields.shape[1:]), dtype=np.float32)
        for run in _runs(rows):
            first, length = int(rows[run.start]), run.stop - run.start
            values[run] = fields[first] if length == 1 else fields[first : first + length]  # h5py reads a single row faster
        bad = np.flatnonzero(~np.isfinite(values).all(axis=(1, 2, 3)))
        if bad.size:
            raise InvalidDataError(f"{self.path}: sample {rows[bad[0]]} is not finite")
        return torch.from_numpy(values if np.array_equal(inverse, np.arange(len(values))) else values[inverse])

    def close(self) -> None:
        """Close the file. The next read opens it again."""
        if self._opened is not None and self._opened[0] == os.getpid():
            self._opened[1].close()
        self._opened = None


def _runs(rows: np.ndarray) -> Iterator[slice]:
    """Return the positions of consecutive rows in a sorted array."""
    edges = [0, *(np.flatnonzero(np.diff(rows) != 1) + 1).tolist(), len(rows)]
    return (slice(a, b) for a, b in pairwise(edges) if b > a)
