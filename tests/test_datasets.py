"""HDF5 data files: what is written is read back, and what breaks the layout is refused with every reason."""

import errno
import json
import multiprocessing
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from envs import data_chunks, datasets
from envs.datasets import DataWriteError, FieldFile, InvalidDataError, validate, violations, write
from envs.pdes import make_pde
from envs.pdes.burgers import Burgers

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
    """A 64 MiB file of 64 KiB rows: opening it and reading 32 random rows reads under 3 MiB."""
    pde, file = make_pde("Burgers-v0", 128), tmp_path / "big.h5"
    with h5py.File(file, "w") as opened:
        opened.create_dataset("fields", (1024, *pde.shape), dtype="f4")[:] = 1.0
        attributes = {**datasets.describe(pde), "format": datasets.FORMAT, "seed": 0, "stream": "t", "floors": "{}"}
        opened.attrs.update(attributes)
    before = bytes_read()
    fields = FieldFile(file, pde).read(np.random.default_rng(0).integers(1024, size=32))
    assert fields.shape == (32, *pde.shape) and (fields == 1).all()
    assert bytes_read() - before < 3 * 2**20


def read_many(file: FieldFile, seed: int, results) -> None:
    rng = np.random.default_rng(seed)
    results.put([file.read(rng.integers(len(file), size=5)).double().sum().item() for _ in range(20)])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_several_processes_read_one_file_at_once(path, pde, method):
    file = FieldFile(path, pde)
    file.read([0])  # its handle is open and must not be the children's
    context = multiprocessing.get_context(method)
    results = context.Queue()
    workers = [context.Process(target=read_many, args=(file, seed, results)) for seed in (1, 2)]
    for worker in workers:
        worker.start()
    rng = np.random.default_rng(1)
    expected = [file.read(rng.integers(len(file), size=5)).double().sum().item() for _ in range(20)]
    got = [results.get(timeout=60) for _ in workers]
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


REQUEST = {"num_samples": SAMPLES, "seed": 3, "stream": "test", "chunk_size": 2}


def stop_after(count):
    """A progress that is interrupted when ``count`` chunks are stored."""

    def progress(parts):
        for i, part in enumerate(parts):
            if i == count:
                raise KeyboardInterrupt
            yield part

    return progress


@pytest.fixture
def whole(tmp_path, pde):
    """Bytes of a file whose writing was never disturbed."""
    write(tmp_path / "whole.h5", pde, **REQUEST)
    return (tmp_path / "whole.h5").read_bytes()


@pytest.fixture
def stopped(tmp_path, pde):
    file = tmp_path / "a.h5"
    with pytest.raises(KeyboardInterrupt, match=r"stopped; 4 of 7 samples are kept in .*a\.h5\.partial"):
        write(file, pde, **REQUEST, progress=stop_after(2))
    return file


def test_an_interrupted_writing_goes_on_and_ends_with_the_same_bits(stopped, whole, monkeypatch):
    asked, ranges, solve = [], [], Burgers.solve

    def spied(self, seed, stream, ids):
        asked.extend(ids)
        return solve(self, seed, stream, ids)

    monkeypatch.setattr(Burgers, "solve", spied)
    floors = write(stopped, make_pde("Burgers-v0", 8), **REQUEST, progress=lambda parts: ranges.extend(parts) or parts)
    assert asked == [4, 5, 6] and ranges == [range(4, 6), range(6, 7)]
    assert stopped.read_bytes() == whole
    with h5py.File(stopped) as file:
        assert json.loads(file.attrs["floors"]) == floors
    assert sorted(p.name for p in stopped.parent.iterdir()) == ["a.h5", "whole.h5"]


def test_interrupted_before_the_first_chunk_leaves_nothing(tmp_path, pde):
    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "a.h5", pde, **REQUEST, progress=stop_after(0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "seed was 3, now 4"),
        ({"stream": "train"}, "stream was 'test', now 'train'"),
        ({"num_samples": 8}, "num_samples was 7, now 8"),
        ({"chunk_size": 3}, "chunk_size was 2, now 3"),
    ],
)
def test_another_request_is_refused_and_may_start_over(stopped, pde, change, message):
    kept = sorted(p.name for p in Path(f"{stopped}.partial").iterdir())
    with pytest.raises(ValueError, match=message) as raised:
        write(stopped, pde, **{**REQUEST, **change})
    assert "--overwrite-partial" in str(raised.value)
    assert sorted(p.name for p in Path(f"{stopped}.partial").iterdir()) == kept
    write(stopped, pde, **{**REQUEST, **change}, overwrite_partial=True)
    assert len(FieldFile(stopped, pde)) == {**REQUEST, **change}["num_samples"]


def test_another_resolution_is_another_request(stopped):
    with pytest.raises(ValueError, match="resolution was 8, now 16"):
        write(stopped, make_pde("Burgers-v0", 16), **REQUEST)


def test_a_damaged_chunk_is_named_and_made_anew(stopped, pde, whole):
    chunk = Path(f"{stopped}.partial") / "chunk-000000002.npz"
    chunk.write_bytes(chunk.read_bytes()[:-40])
    with pytest.raises(DataWriteError, match="chunk-000000002.npz was damaged"):
        write(stopped, pde, **REQUEST)
    write(stopped, pde, **REQUEST)
    assert stopped.read_bytes() == whole


def test_a_second_writer_is_refused(tmp_path, pde):
    refused = []

    def second(parts):
        for part in parts:
            yield part
            with pytest.raises(DataWriteError, match=r"a\.h5 is being written by another process") as raised:
                write(tmp_path / "a.h5", pde, **REQUEST)
            refused.append(raised)

    write(tmp_path / "a.h5", pde, **REQUEST, progress=second)
    assert len(refused) == 4
    validate(tmp_path / "a.h5", pde)


@pytest.mark.parametrize("where", ["chunk", "assembly"])
def test_a_full_disk_is_said_and_the_writing_resumable(tmp_path, pde, whole, where, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    file = tmp_path / "a.h5"
    with monkeypatch.context() as patch:
        patch.setattr(*((data_chunks.np, "savez") if where == "chunk" else (h5py.AttributeManager, "update")), full)
        with pytest.raises(DataWriteError, match=r"No space left on device. Finished chunks stay in .*ask again"):
            write(file, pde, **REQUEST)
    assert not file.exists() and not (tmp_path / "a.h5.partial" / "unfinished").exists()
    write(file, pde, **REQUEST)
    assert file.read_bytes() == whole


def test_a_solver_that_diverges_is_refused(tmp_path, pde, monkeypatch):
    solve = Burgers.solve
    monkeypatch.setattr(
        Burgers,
        "solve",
        lambda self, seed, stream, ids: solve(self, seed, stream, ids) / (torch.tensor(ids) != 5)[:, None, None, None],
    )
    with pytest.raises(ValueError, match="sample 5 is not finite; 1 of samples 4 to 5 are not"):
        write(tmp_path / "a.h5", pde, **REQUEST)
    assert not (tmp_path / "a.h5").exists()


# --- processes that die ---

WRITER = """
import signal, sys
from pathlib import Path
from envs.datasets import write
from envs.pdes import make_pde
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    write(Path(sys.argv[1]), make_pde("Burgers-v0", 8), num_samples=60, seed=3, stream="test", chunk_size=2, workers=int(sys.argv[2]))
"""


def writer(tmp_path, file, workers):
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, script, file, str(workers)], env=environment, stderr=subprocess.PIPE, text=True)


def wait_for_chunk(process, file) -> None:
    """Until one more chunk is there."""

    def count():
        return len(list(Path(f"{file}.partial").glob("chunk-*"))) if not file.exists() else 60

    before, end = count(), time.monotonic() + 60
    while count() <= before and process.poll() is None and time.monotonic() < end:
        time.sleep(0.001)


def children(process) -> list[Path]:
    ids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [Path(f"/proc/{i}") for i in ids]


def gone(processes, seconds=15) -> bool:
    end = time.monotonic() + seconds
    while any(p.exists() for p in processes) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(p.exists() for p in processes)


def test_killed_at_random_moments_it_goes_on_and_ends_with_the_same_bits(tmp_path, pde):
    file, rng, kills = tmp_path / "a.h5", random.Random(0), 0
    for _ in range(4):
        process = writer(tmp_path, file, 1)
        wait_for_chunk(process, file)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.communicate()
        kills += process.returncode == -signal.SIGKILL
        if not file.exists():
            for chunk in Path(f"{file}.partial").glob("chunk-*"):
                np.load(chunk)["fields"]  # whatever has its name is whole
    assert kills >= 2
    if not file.exists():
        write(file, pde, num_samples=60, seed=3, stream="test", chunk_size=2)
    write(tmp_path / "whole.h5", pde, num_samples=60, seed=3, stream="test", chunk_size=2)
    assert file.read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_several_workers_end_with_their_parent_and_give_the_same_bits(tmp_path, pde, how):
    file = tmp_path / "a.h5"
    process = writer(tmp_path, file, 2)
    wait_for_chunk(process, file)
    workers = children(process)
    process.send_signal(how)
    _, error = process.communicate(timeout=60)
    assert len(workers) >= 2 and gone(workers)
    if how == signal.SIGINT:
        assert error.count("Traceback") == 1 and "KeyboardInterrupt: stopped; " in error
    assert not file.exists()
    write(file, pde, num_samples=60, seed=3, stream="test", chunk_size=2, workers=2)
    write(tmp_path / "whole.h5", pde, num_samples=60, seed=3, stream="test", chunk_size=2)
    assert file.read_bytes() == (tmp_path / "whole.h5").read_bytes()


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
