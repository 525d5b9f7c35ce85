"""samples.h5: written whole, read back, foreign files refused."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from envs.data.datasets import InvalidDataError
from envs.pdes import PDE
from pirf_ray.evaluation.samples import read_attributes, read_samples, write_samples


@pytest.fixture(scope="module")
def sets(fields: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: fields[name][:8] for name in ("base", "tuned")}


def test_samples_round_trip(tmp_path: Path, pde: PDE, sets: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "run" / "samples.h5"
    for _ in range(2):  # a second write replaces the file
        write_samples(path, pde, sets, {"seed": 3, "stream": "evaluation"})
    groups, attributes = read_samples(path), read_attributes(path)
    assert groups.keys() == sets.keys()
    for name, fields in sets.items():
        assert groups[name].dtype == np.float32
        assert np.array_equal(groups[name], fields.numpy())
    assert attributes["env_id"] == pde.env_id
    assert attributes["channels"] == list(pde.channels)
    assert attributes["resolution"] == pde.resolution
    assert attributes["seed"] == 3
    assert attributes["grid"]["columns"]["layout"] == "periodic"
    assert [file.name for file in path.parent.iterdir()] == ["samples.h5"]


def test_samples_refuse_bad_shapes_and_foreign_files(tmp_path: Path, pde: PDE) -> None:
    with pytest.raises(ValueError, match="expects fields"):
        write_samples(tmp_path / "s.h5", pde, {"base": torch.zeros(2, 1, 4, 4)}, {})
    assert not list(tmp_path.iterdir())
    (tmp_path / "s.h5").write_text("no HDF5")
    with pytest.raises(InvalidDataError, match="not a readable HDF5 file"):
        read_samples(tmp_path / "s.h5")
    h5py.File(tmp_path / "other.h5", "w").close()
    with pytest.raises(InvalidDataError, match="format is None, expected 'pirf_ray-samples-1'"):
        read_attributes(tmp_path / "other.h5")


def test_samples_that_lie_in_another_file_are_refused(pde: PDE, sets: dict[str, torch.Tensor], tmp_path: Path) -> None:
    write_samples(tmp_path / "s.h5", pde, {"tuned": sets["tuned"]}, {})
    with h5py.File(tmp_path / "s.h5", "r+") as file:
        file["data"] = h5py.ExternalLink("private.h5", "/")
    with pytest.raises(InvalidDataError, match=r"'data' is a link into another file, 'private.h5'"):
        read_samples(tmp_path / "s.h5")
