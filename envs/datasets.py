"""HDF5 files of solver data: self-describing, written in chunks, read lazily, validated.

Layout: dataset ``fields`` (sample, channel, row, column) float32 in physical units; root attributes
``format, env_id, equation, channels, units, grid, resolution, solver, seed, stream, floors``. ``grid`` and ``floors``
(mean residual of each operator over the file's samples) are JSON.
"""

import json
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import torch

from envs.pdes.base import PDE, make_pde
from envs.seeding import chunks

FORMAT = "pirf_ray-fields-1"
REQUIRED = ("format", "env_id", "equation", "channels", "units", "grid", "resolution", "solver", "seed", "stream", "floors")
VALIDATION_ROWS = 256


class InvalidDataError(ValueError):
    """A data file that breaks the layout; the message lists every violation found."""


def write(
    path: Path,
    pde: PDE,
    *,
    num_samples: int,
    seed: int,
    stream: str,
    chunk_size: int = 256,
    progress: Callable[[Iterable[range]], Iterable[range]] = iter,
) -> dict[str, float]:
    """Solve ``num_samples`` samples and write them; returns the floors. The file appears only when complete.

    Raises FileExistsError if ``path`` exists: data is never overwritten.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    if path.exists():
        raise FileExistsError(f"{path} exists; data files are never overwritten")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    sums = dict.fromkeys(pde.operators, 0.0)
    try:
        with h5py.File(partial, "w") as file:
            fields = file.create_dataset(
                "fields", (num_samples, *pde.shape), dtype="f4", chunks=(min(num_samples, 64), *pde.shape)
            )
            for ids in progress(list(chunks(num_samples, chunk_size))):
                solved = pde.solve(seed, stream, ids)
                fields[ids.start : ids.stop] = solved.float().numpy()
                for name in sums:
                    sums[name] += float(pde.residual(solved, name).sum())
            floors = {name: total / num_samples for name, total in sums.items()}
            file.attrs.update({**describe(pde), "format": FORMAT, "seed": seed, "stream": stream, "floors": json.dumps(floors)})
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    return floors


def describe(pde: PDE) -> dict[str, str | int]:
    """Root attributes that say which equation on which grid a file's fields belong to; lists and grids as JSON."""
    return {
        "env_id": pde.env_id,
        "equation": pde.equation,
        "channels": json.dumps(pde.channels),
        "units": pde.units,
        "grid": json.dumps(asdict(pde.grid)),
        "resolution": pde.resolution,
        "solver": pde.solver,
    }


def violations(path: Path, pde: PDE | None = None) -> list[str]:
    """Everything wrong with the file (empty if valid); with ``pde``, also whether it belongs to that PDE and grid."""
    if not path.is_file():
        return [f"{path}: no such file"]
    try:
        with h5py.File(path, "r") as file:
            return [f"{path}: {problem}" for problem in _file_violations(file, pde)]
    except OSError as error:
        return [f"{path}: not a readable HDF5 file ({error})"]


def _file_violations(file: h5py.File, pde: PDE | None) -> list[str]:
    found = [f"attribute {name!r} is missing" for name in REQUIRED if name not in file.attrs]
    if "fields" not in file or not isinstance(file["fields"], h5py.Dataset):
        return [*found, "dataset 'fields' is missing"]
    if found:
        return found
    if file.attrs["format"] != FORMAT:
        return [f"format is {file.attrs['format']!r}, expected {FORMAT!r}"]
    if pde is None:
        try:
            pde = make_pde(str(file.attrs["env_id"]), int(file.attrs["resolution"]))
        except ValueError as error:
            return [str(error)]
    if file.attrs["env_id"] != pde.env_id:
        found.append(f"holds {file.attrs['env_id']}, expected {pde.env_id}")
    return found + _field_violations(file["fields"], pde)


def _field_violations(fields: h5py.Dataset, pde: PDE) -> list[str]:
    found = []
    if fields.ndim != 4 or fields.shape[1:] != pde.shape:
        found.append(f"fields have shape {fields.shape}, expected (samples, {', '.join(map(str, pde.shape))}) at this resolution")
    if fields.dtype.kind != "f":
        found.append(f"fields have type {fields.dtype}, expected a floating-point type")
    if found:
        return found
    if fields.shape[0] == 0:
        return ["fields hold no sample"]
    bad = [i for rows in chunks(fields.shape[0], VALIDATION_ROWS) for i in _nonfinite(fields, rows)]
    if bad:
        found.append(f"{len(bad)} of {fields.shape[0]} samples are not finite, first sample {bad[0]}")
    return found


def _nonfinite(fields: h5py.Dataset, rows: range) -> list[int]:
    finite = np.isfinite(fields[rows.start : rows.stop]).all(axis=(1, 2, 3))
    return [rows.start + int(i) for i in np.flatnonzero(~finite)]


def validate(path: Path, pde: PDE | None = None) -> None:
    """Raise InvalidDataError that lists every violation."""
    found = violations(path, pde)
    if found:
        raise InvalidDataError("; ".join(found))


class FieldFile:
    """Lazy reader of a validated file: only the rows that are asked for are read. Physical units, float32."""

    def __init__(self, path: Path, pde: PDE) -> None:
        validate(path, pde)
        self._file = h5py.File(path, "r")
        self._fields: h5py.Dataset = self._file["fields"]
        self.floors: dict[str, float] = json.loads(self._file.attrs["floors"])
        self.seed = int(self._file.attrs["seed"])
        self.stream = str(self._file.attrs["stream"])

    def __len__(self) -> int:
        return int(self._fields.shape[0])

    def read(self, indices: np.ndarray | range) -> torch.Tensor:
        """Fields (len(indices), c, h, w) of the given rows, in the given order."""
        order, inverse = np.unique(np.asarray(indices, dtype=np.int64), return_inverse=True)
        return torch.from_numpy(np.asarray(self._fields[order], dtype=np.float32)[inverse])

    def close(self) -> None:
        self._file.close()
