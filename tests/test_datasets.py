"""HDF5 data files: what is written is read back, and what breaks the layout is refused with every reason."""

import json

import h5py
import numpy as np
import pytest
import torch

from envs import datasets
from envs.datasets import FieldFile, InvalidDataError, validate, violations, write
from envs.pdes import make_pde

SAMPLES = 7


@pytest.fixture(scope="module")
def pde():
    return make_pde("Burgers-v0", 8)


@pytest.fixture
def path(tmp_path, pde):
    path = tmp_path / "sub" / "fields.h5"
    write(path, pde, num_samples=SAMPLES, seed=3, stream="test", chunk_size=3)
    return path


def test_written_fields_are_read_back_as_float32(path, pde):
    file = FieldFile(path, pde)
    assert len(file) == SAMPLES and (file.seed, file.stream) == (3, "test")
    fields = file.read(range(SAMPLES))
    assert fields.dtype == torch.float32
    torch.testing.assert_close(fields.double(), pde.solve(3, "test", range(SAMPLES)), rtol=1e-6, atol=1e-6)
    file.close()


def test_chunk_size_does_not_change_the_data(path, pde, tmp_path):
    write(tmp_path / "whole.h5", pde, num_samples=SAMPLES, seed=3, stream="test")
    torch.testing.assert_close(
        FieldFile(path, pde).read(range(SAMPLES)), FieldFile(tmp_path / "whole.h5", pde).read(range(SAMPLES)), rtol=0, atol=1e-7
    )


def test_floors_are_the_mean_residuals_of_the_file(path, pde):
    fields = pde.solve(3, "test", range(SAMPLES))
    floors = FieldFile(path, pde).floors
    assert floors.keys() == pde.operators.keys()
    for name, value in floors.items():
        assert value == pytest.approx(pde.residual(fields, name).mean().item(), rel=1e-9)


def test_write_returns_the_floors_it_stores(tmp_path, pde):
    floors = write(tmp_path / "a.h5", pde, num_samples=2, seed=0, stream="test")
    with h5py.File(tmp_path / "a.h5") as file:
        assert json.loads(file.attrs["floors"]) == floors


def test_file_describes_itself(path, pde):
    with h5py.File(path) as file:
        attributes = dict(file.attrs)
    assert attributes.keys() == set(datasets.REQUIRED)
    assert attributes["env_id"] == "Burgers-v0" and attributes["resolution"] == 8
    assert attributes["equation"] == pde.equation and json.loads(attributes["channels"]) == ["u"]
    assert json.loads(attributes["grid"])["rows"] == {"name": "t", "extent": 1.0, "size": 8, "layout": "vertex"}


@pytest.mark.parametrize(
    "indices",
    [[5, 0, 3], [2, 2, 2], [6, 1, 6, 0, 1], [4], np.array([3, 3, 0]), []],
    ids=["unordered", "repeated", "both", "one", "array", "none"],
)
def test_rows_come_in_the_order_asked_for(path, pde, indices):
    file = FieldFile(path, pde)
    everything = file.read(range(SAMPLES))
    assert torch.equal(file.read(indices), everything[torch.as_tensor(indices, dtype=torch.long)])


def test_reading_is_lazy(path, pde, monkeypatch):
    file = FieldFile(path, pde)
    asked = []

    class Spy:
        def __getitem__(self, rows):
            asked.append(list(rows))
            return np.zeros((len(rows), *pde.shape), dtype=np.float32)

    monkeypatch.setattr(file, "_fields", Spy())
    assert file.read([6, 2, 6]).shape == (3, 1, 8, 8)
    assert asked == [[2, 6]]


def test_existing_files_are_never_overwritten(path, pde):
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"fields\.h5 exists"):
        write(path, pde, num_samples=1, seed=0, stream="test")
    assert path.read_bytes() == before


def test_interrupted_write_leaves_nothing_behind(tmp_path, pde):
    def interrupted(parts):
        yield parts[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.h5", pde, num_samples=4, seed=0, stream="test", chunk_size=2, progress=interrupted)
    assert list(tmp_path.iterdir()) == []


def test_no_samples_are_refused(tmp_path, pde):
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        write(tmp_path / "a.h5", pde, num_samples=0, seed=0, stream="test")


@pytest.mark.parametrize("size", [0, -1])
def test_an_impossible_chunk_size_is_refused_instead_of_writing_zeros(tmp_path, pde, size):
    with pytest.raises(ValueError, match=f"chunk size must be at least 1, got {size}"):
        write(tmp_path / "a.h5", pde, num_samples=2, seed=0, stream="test", chunk_size=size)
    assert list(tmp_path.iterdir()) == []


# --- validation ---


@pytest.mark.parametrize("given", [True, False], ids=["expected PDE", "own PDE"])
def test_a_written_file_is_valid(path, pde, given):
    assert violations(path, pde if given else None) == []
    validate(path, pde if given else None)


def replace_fields(file, fields):
    del file["fields"]
    file["fields"] = fields


def make_nan(file):
    file["fields"][2, 0, 1, 1] = np.nan
    file["fields"][5, 0, 0, 0] = np.inf


BROKEN = {
    "missing attribute": (lambda f: f.attrs.pop("seed"), "attribute 'seed' is missing"),
    "missing fields": (lambda f: f.pop("fields"), "dataset 'fields' is missing"),
    "group for fields": (lambda f: (f.pop("fields"), f.create_group("fields")), "dataset 'fields' is missing"),
    "other format": (lambda f: f.attrs.update(format="x"), "format is 'x', expected 'pirf_ray-fields-1'"),
    "wrong resolution": (lambda f: replace_fields(f, np.zeros((2, 1, 16, 16), "f4")), r"shape \(2, 1, 16, 16\), expected"),
    "missing axis": (lambda f: replace_fields(f, np.zeros((2, 8, 8), "f4")), r"shape \(2, 8, 8\), expected"),
    "too many channels": (lambda f: replace_fields(f, np.zeros((2, 2, 8, 8), "f4")), r"shape \(2, 2, 8, 8\), expected"),
    "integers": (lambda f: replace_fields(f, np.zeros((2, 1, 8, 8), "i4")), "type int32"),
    "no sample": (lambda f: replace_fields(f, np.zeros((0, 1, 8, 8), "f4")), "no sample"),
    "not finite": (make_nan, "2 of 7 samples are not finite, first sample 2"),
    "other PDE": (lambda f: f.attrs.update(env_id="Darcy-v0"), "holds Darcy-v0, expected Burgers-v0"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_are_refused_with_the_reason(path, pde, damage, message):
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(InvalidDataError, match=message) as raised:
        validate(path, pde)
    assert str(path) in str(raised.value)
    with pytest.raises(InvalidDataError, match=message):
        FieldFile(path, pde)


def test_all_missing_attributes_and_fields_are_listed_at_once(path, pde):
    with h5py.File(path, "r+") as file:
        del file["fields"], file.attrs["seed"], file.attrs["grid"], file.attrs["floors"]
    found = violations(path, pde)
    assert len(found) == 4
    assert all(any(name in line for line in found) for name in ("'seed'", "'grid'", "'floors'", "'fields'"))
    with pytest.raises(InvalidDataError, match="'grid'.*'seed'|'seed'.*'grid'"):
        validate(path, pde)


def test_wrong_pde_shape_and_type_are_listed_at_once(path, pde):
    with h5py.File(path, "r+") as file:
        file.attrs["env_id"] = "Darcy-v0"
        replace_fields(file, np.zeros((2, 1, 4, 8), "i4"))
    assert len(violations(path, pde)) == 3


def test_file_of_an_unknown_pde_is_refused_without_an_expected_one(path):
    with h5py.File(path, "r+") as file:
        file.attrs["env_id"] = "Stokes-v0"
    assert "unknown env 'Stokes-v0'" in violations(path)[0]


def test_file_of_another_resolution_is_refused(path):
    with pytest.raises(InvalidDataError, match=r"expected \(samples, 1, 16, 16\)"):
        FieldFile(path, make_pde("Burgers-v0", 16))


def test_not_finite_samples_are_found_beyond_the_first_chunk(path, pde, monkeypatch):
    monkeypatch.setattr(datasets, "VALIDATION_ROWS", 2)
    with h5py.File(path, "r+") as file:
        make_nan(file)
    assert "2 of 7 samples are not finite, first sample 2" in violations(path, pde)[0]


@pytest.mark.parametrize("content", [b"", b"not HDF5 at all", None], ids=["empty file", "text", "cut short"])
def test_files_that_are_not_hdf5_are_refused(path, pde, content):
    path.write_bytes(path.read_bytes()[:1000] if content is None else content)
    with pytest.raises(InvalidDataError, match="not a readable HDF5 file"):
        validate(path, pde)


def test_missing_file_is_refused(tmp_path, pde):
    with pytest.raises(InvalidDataError, match=r"gone\.h5: no such file"):
        FieldFile(tmp_path / "gone.h5", pde)
