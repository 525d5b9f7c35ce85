"""samples.h5: generated and real fields side by side, self-describing."""

import json
import os
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import torch

from envs.pdes import PDE


def write_samples(path: Path, pde: PDE, groups: dict[str, torch.Tensor], attributes: dict[str, int | float | str]) -> None:
    """Groups (base, tuned, data, ...) each with ``fields`` (sample, channel, row, column), float32, physical units."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with h5py.File(partial, "w") as file:
        file.attrs.update(
            {
                "env_id": pde.env_id,
                "equation": pde.equation,
                "channels": json.dumps(pde.channels),
                "units": pde.units,
                "grid": json.dumps(asdict(pde.grid)),
                "resolution": pde.resolution,
                **attributes,
            }
        )
        for name, fields in groups.items():
            pde.check_fields(fields)
            file.create_group(name).create_dataset("fields", data=fields.float().numpy(), compression="gzip", shuffle=True)
    os.replace(partial, path)


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """Fields by group."""
    with h5py.File(path, "r") as file:
        return {name: np.asarray(group["fields"]) for name, group in file.items()}
