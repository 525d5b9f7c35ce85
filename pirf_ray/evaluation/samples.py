"""samples.h5: generated and real fields side by side, self-describing.

A group a set (``base``, ``tuned``, ``data``, ...), each with dataset ``fields`` (sample, channel, row, column), float32,
physical units. Root attributes: those of solver data (``envs.data.datasets``) that describe equation and grid, and the caller's;
``channels`` and ``grid`` are JSON.
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
    """Write groups of fields (n, c, h, w); the file appears, or replaces an older one, only when complete."""
    for fields in groups.values():
        pde.check_fields(fields)
    whole = io.BytesIO()  # HDF5 itself, on a disk that fills up, can end in a segmentation fault
    with h5py.File(whole, "w") as file:
        file.attrs.update({**describe(pde), "format": FORMAT, **attributes})
        for name, fields in groups.items():
            values = fields.detach().cpu().float().numpy()
            file.create_group(name).create_dataset("fields", data=values, compression="gzip", shuffle=True)
    with staged_file(path) as partial:
        partial.write_bytes(whole.getbuffer())


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """Fields (n, c, h, w) by group, float32, physical units. InvalidDataError names what is wrong with the file."""
    with _opened(path) as file:
        for name in file:
            if other := elsewhere(file, name) or elsewhere(file[name], "fields"):
                raise InvalidDataError(f"{path}: {other}")
        return {name: np.asarray(group["fields"]) for name, group in file.items()}


def read_attributes(path: Path) -> dict[str, Any]:
    """Root attributes, ``channels`` and ``grid`` decoded."""
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
