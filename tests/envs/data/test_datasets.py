"""HDF5 data files: what is written is read back, and what breaks the layout is refused with every reason."""

import json
import multiprocessing
import pickle
import random
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from envs.data import datasets
from envs.data.datasets import FieldFile, InvalidDataError, validate, violations, write
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
    assert attributes.keys() == {*datasets.REQUIRED, "parameters"}
    assert json.loads(attributes["parameters"]) == {}
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


def test_each_row_is_asked_for_once_in_runs(path, pde, monkeypatch):
    asked = []

    class Spy:
        shape = (SAMPLES, *pde.shape)

        def __len__(self):
            return SAMPLES

        def __getitem__(self, rows):
            asked.append(rows)
            return np.zeros(pde.shape, dtype=np.float32)

    monkeypatch.setattr(FieldFile, "_fields", Spy())
    assert FieldFile(path, pde).read([6, 2, 6, 3]).shape == (4, 1, 8, 8)
    assert asked == [slice(2, 4), 6]


@pytest.mark.parametrize("indices", [[-1], [0, SAMPLES]])
def test_rows_that_are_not_there_are_refused(path, pde, indices):
    with pytest.raises(IndexError, match=r"samples must be in \[0, 6\]"):
        FieldFile(path, pde).read(indices)


def bytes_read() -> int:
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="needs Linux")
def test_random_rows_cost_little_more_than_themselves(tmp_path):
    """A 16 MiB file of 64 KiB rows: opening it and reading 32 random rows reads under 3 MiB."""
    pde, file = make_pde("Burgers-v0", 128), tmp_path / "big.h5"
    with h5py.File(file, "w") as opened:
        opened.create_dataset("fields", (256, *pde.shape), dtype="f4")[:] = 1.0
        attributes = {**datasets.describe(pde), "format": datasets.FORMAT, "seed": 0, "stream": "t", "floors": "{}"}
        opened.attrs.update(attributes)
    before = bytes_read()
    fields = FieldFile(file, pde).read(np.random.default_rng(0).integers(256, size=32))
    assert fields.shape == (32, *pde.shape) and (fields == 1).all()
    assert bytes_read() - before < 3 * 2**20


def read_many(file: FieldFile, seed: int, results) -> None:
    rng = np.random.default_rng(seed)
    results.put([file.read(rng.integers(len(file), size=5)).double().sum().item() for _ in range(20)])


@pytest.mark.parametrize(("method", "seeds"), [("spawn", (1,)), ("fork", (1, 2))])
def test_several_processes_read_one_file_at_once(path, pde, method, seeds):
    file = FieldFile(path, pde)
    file.read([0])  # its handle is open and must not be the children's
    context = multiprocessing.get_context(method)
    results = context.Queue()
    workers = [context.Process(target=read_many, args=(file, seed, results)) for seed in seeds]
    for worker in workers:
        worker.start()
    rng = np.random.default_rng(1)
    expected = [file.read(rng.integers(len(file), size=5)).double().sum().item() for _ in range(20)]
    got = [results.get(timeout=120) for _ in workers]
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert expected in got


def test_a_pickled_reader_carries_no_handle(path, pde):
    file = FieldFile(path, pde)
    rows = file.read([3, 1])
    again = pickle.loads(pickle.dumps(file))
    assert again._opened is None and (again.seed, again.floors, len(again)) == (3, file.floors, SAMPLES)
    assert torch.equal(again.read([3, 1]), rows)


def test_chunked_files_of_before_are_read(path, pde):
    expected = FieldFile(path, pde).read(range(SAMPLES))
    with h5py.File(path, "r+") as file:
        del file["fields"], file.attrs["parameters"]
        file.create_dataset("fields", data=expected.numpy(), chunks=(4, *pde.shape), compression="gzip")
    file = FieldFile(path, pde)
    assert torch.equal(file.read([5, 1, 5]), expected[[5, 1, 5]])


def test_a_row_that_is_not_finite_is_refused_when_read(path, pde):
    with h5py.File(path, "r+") as file:
        make_nan(file)
    file = FieldFile(path, pde)
    file.read([0, 1])
    with pytest.raises(InvalidDataError, match=r"fields\.h5: sample 2 is not finite"):
        file.read([4, 2])


def test_existing_files_are_never_overwritten(path, pde):
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"fields\.h5 exists"):
        write(path, pde, num_samples=1, seed=0, stream="test")
    assert path.read_bytes() == before


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


def replace_by_link(file):
    del file["fields"]
    file["fields"] = h5py.ExternalLink("other.h5", "fields")


def replace_by_external(file):
    del file["fields"]
    file.create_dataset("fields", (7, 1, 8, 8), "f4", external=[("numbers.raw", 0, h5py.h5f.UNLIMITED)])


def replace_by_virtual(file):
    del file["fields"]
    layout = h5py.VirtualLayout((7, 1, 8, 8), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "fields", (7, 1, 8, 8))
    file.create_virtual_dataset("fields", layout)


BROKEN = {
    "missing attribute": (lambda f: f.attrs.pop("seed"), "attribute 'seed' is missing"),
    "missing fields": (lambda f: f.pop("fields"), "dataset 'fields' is missing"),
    "group for fields": (lambda f: (f.pop("fields"), f.create_group("fields")), "dataset 'fields' is missing"),
    "link into another file": (
        lambda f: replace_by_link(f),
        "'fields' is a link into another file, 'other.h5'",
    ),
    "numbers in another file": (lambda f: replace_by_external(f), "'fields' has its numbers in other files"),
    "virtual dataset": (lambda f: replace_by_virtual(f), "'fields' has its numbers in other files"),
    "other format": (lambda f: f.attrs.update(format="x"), "format is 'x', expected 'pirf_ray-fields-1'"),
    "wrong resolution": (lambda f: replace_fields(f, np.zeros((2, 1, 16, 16), "f4")), r"shape \(2, 1, 16, 16\), expected"),
    "missing axis": (lambda f: replace_fields(f, np.zeros((2, 8, 8), "f4")), r"shape \(2, 8, 8\), expected"),
    "too many channels": (lambda f: replace_fields(f, np.zeros((2, 2, 8, 8), "f4")), r"shape \(2, 2, 8, 8\), expected"),
    "integers": (lambda f: replace_fields(f, np.zeros((2, 1, 8, 8), "i4")), "type int32"),
    "no sample": (lambda f: replace_fields(f, np.zeros((0, 1, 8, 8), "f4")), "no sample"),
    "not finite": (make_nan, "2 of 7 samples are not finite, first sample 2"),
    "parameters": (lambda f: f.attrs.update(parameters='{"nu": 2.0}'), r"parameters is {'nu': 2.0}, expected {}"),
    "parameters as a list": (lambda f: f.attrs.update(parameters="[1]"), "'parameters': expected a JSON dict, got str"),
    "negative seed": (lambda f: f.attrs.update(seed=-1), r"seed must be in \[0, \d+\], got -1"),
    "seed in words": (lambda f: f.attrs.update(seed="two"), "'seed': expected an integer, got str 'two'"),
    "floors": (lambda f: f.attrs.update(floors='{"paper": NaN}'), "'floors': 'paper' must be a finite number, got nan"),
    "no JSON": (lambda f: f.attrs.update(grid="{"), "'grid': expected a JSON dict"),
    "other grid": (lambda f: f.attrs.update(grid="{}"), r"grid is {}, expected {'rows'"),
    "other channels": (lambda f: f.attrs.update(channels='["a", "u"]'), r"channels is \['a', 'u'\], expected \['u'\]"),
    "other PDE": (lambda f: f.attrs.update(env_id="Darcy-v0"), "holds Darcy-v0, expected Burgers-v0"),
}


@pytest.mark.parametrize(("damage", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_files_are_refused_with_the_reason(path, pde, damage, message):
    with h5py.File(path, "r+") as file:
        damage(file)
    with pytest.raises(InvalidDataError, match=message) as raised:
        validate(path, pde)
    assert str(path) in str(raised.value)
    if "not finite" not in message:  # that is found when the row is read
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


JUNK = [
    b"\xff\xfe", "", "x" * 10_000, 0, -3, 2**62, 1.5, np.nan, True, np.bool_(False), [1, 2], np.zeros((2, 2)), ["a", "b"],
    h5py.Empty("f4"), h5py.Empty("S4"), np.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]), 1 + 2j, "[" * 5000, "1e999",
    "null", "{}", "[]", '{"a": null}', '{"a": true}', '{"resolution": 3}', '{"a": ' + "9" * 400 + "}", np.datetime64("2020").astype("i8"),
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_no_attribute_content_ends_in_a_traceback(path, pde, seed):
    """Attributes of random types and contents are violations, each, and nothing else happens."""
    rng = random.Random(seed)
    for _ in range(60):
        with h5py.File(path, "r+") as file:
            for name in rng.sample([*datasets.REQUIRED, *datasets.OPTIONAL], k=rng.randint(1, 4)):
                if name in file.attrs:
                    del file.attrs[name]
                file.attrs[name] = rng.choice(JUNK)
        for given in (pde, None):
            assert all(isinstance(line, str) for line in violations(path, given))
    file = path.with_name("all.h5")
    write(file, pde, num_samples=1, seed=0, stream="t")
    with h5py.File(file, "r+") as opened:
        for name in datasets.REQUIRED:
            opened.attrs[name] = np.zeros((2, 2))
    found = violations(file, pde)
    assert len(found) == len(datasets.REQUIRED) and all("expected" in line and "ndarray" in line for line in found)


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
