"""The file samples.h5 of generated and real fields, self-describing.

Each set (``base``, ``tuned``, ``data``, ...) is a group with a dataset ``fields`` (sample, channel, row, column), float32,
physical units. The root attributes describe equation and grid as in solver data (``envs.data.datasets``), and hold the
attributes that the caller gives. ``channels``, ``grid`` and ``parameters`` are JSON.
"""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch

from envs.common.files import staged_file
from envs.data.datasets import InvalidDataError, describe, elsewhere
from envs.pdes import PDE

FORMAT = "pirf_ray-samples-1"
JSON_ATTRIBUTES = ("channels", "grid", "parameters")


def write_samples(path: Path, pde: PDE, groups: Mapping[str, torch.Tensor], attributes: Mapping[str, int | float | str]) -> None:
    """Write groups of fields (n, c, h, w). The file appears, or replaces an older file, only when it is complete."""
    for fields in groups.values():
        pde.check_fields(fields)
    whole = io.BytesIO()  # on a full disk, HDF5's own writing can end in a segmentation fault
    with h5py.File(whole, "w") as file:
        file.attrs.update({**describe(pde), "format": FORMAT, **attributes})
        for name, fields in groups.items():
            values = fields.detach().cpu().float().numpy()
            file.create_group(name).create_dataset("fields", data=values, compression="gzip", shuffle=True)
    with staged_file(path) as partial:
        partial.write_bytes(whole.getbuffer())


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """Return the fields (n, c, h, w) by group, float32, physical units. InvalidDataError names the fault of the file."""
    with _opened(path) as file:
        for name in file:
            if other := elsewhere(file, name) or elsewhere(file[name], "fields"):
                raise InvalidDataError(f"{path}: {other}")
        return {name: np.asarray(group["fields"]) for name, group in file.items()}


def read_attributes(path: Path) -> dict[str, Any]:
    """Return the root attributes, with JSON decoded."""
    with _opened(path) as file:
        return {name: _plain(name, value) for name, value in file.attrs.items()}


def _opened(path: Path) -> h5py.File:
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise InvalidDataError(f"{path}: not a readable HDF5 file ({error})") from None
    if file.attrs.get("format") != FORMAT:
        found = file.attrs.get("format")
        file.close()
        raise InvalidDataError(f"{path}: format is {found!r}, expected {FORMAT!r}")
    return file


def _plain(name: str, value: Any) -> Any:
    if name in JSON_ATTRIBUTES:
        return json.loads(value)
    return value.item() if isinstance(value, np.generic) else value
