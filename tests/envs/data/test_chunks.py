"""Writing HDF5 data files: interrupted, killed, out of disk or shared, it continues and ends with the same bits."""

import errno
import json
import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from envs.data import chunks
from envs.data.datasets import DataWriteError, FieldFile, validate, write
from envs.pdes import make_pde
from envs.pdes.burgers import Burgers

SAMPLES = 7


@pytest.fixture(scope="module")
def pde():
    return make_pde("Burgers-v0", 8)


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


def test_an_interrupted_writing_continues_and_ends_with_the_same_bits(stopped, whole, monkeypatch):
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
        patch.setattr(*((chunks.np, "savez") if where == "chunk" else (h5py.AttributeManager, "update")), full)
        with pytest.raises(
            DataWriteError, match=r"No space left on device.*\. Finished chunks stay in .* the same call continues"
        ):
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

MANY = {"num_samples": 44, "seed": 3, "stream": "test", "chunk_size": 2}


def four_then_wait(parts):
    """A progress that leaves time to kill the writer within the first chunks, and hangs after four: it never ends by itself."""
    for count, part in enumerate(parts):
        time.sleep(0.02 if count < 4 else 600)
        yield part


def write_in_a_process(file, log, workers):
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.stderr = log.open("w", buffering=1)
    os.dup2(sys.stderr.fileno(), 2)
    write(file, make_pde("Burgers-v0", 8), **MANY, progress=four_then_wait, workers=workers)


def started_writer(file, workers):
    """A forked writer (no imports to wait for) that has stored one more chunk."""
    stored = len(stored_chunks(file))
    process = multiprocessing.get_context("fork").Process(
        target=write_in_a_process, args=(file, file.with_suffix(".log"), workers)
    )
    process.start()
    end = time.monotonic() + 120
    while len(stored_chunks(file)) <= stored and process.is_alive() and time.monotonic() < end:
        time.sleep(0.001)
    assert process.is_alive()
    return process


def stored_chunks(file) -> list[Path]:
    return list(Path(f"{file}.partial").glob(chunks.CHUNKS))


def children(pid) -> list[Path]:
    ids = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{i}") for i in ids]


def gone(processes, seconds=30) -> bool:
    end = time.monotonic() + seconds
    while any(p.exists() for p in processes) and time.monotonic() < end:
        time.sleep(0.01)
    return not any(p.exists() for p in processes)


def assert_finished_like_an_undisturbed_file(file, pde):
    write(file, pde, **MANY)
    write(file.with_name("whole.h5"), pde, **MANY)
    assert file.read_bytes() == file.with_name("whole.h5").read_bytes()


def test_killed_at_random_moments_it_continues_and_ends_with_the_same_bits(tmp_path, pde):
    file, rng = tmp_path / "a.h5", random.Random(0)
    for _ in range(4):
        process = started_writer(file, 1)
        time.sleep(rng.uniform(0, 0.05))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL and not file.exists()
        for chunk in stored_chunks(file):
            np.load(chunk)["fields"]  # whatever has its name is whole
    assert_finished_like_an_undisturbed_file(file, pde)


def test_several_workers_end_with_their_parent_and_give_the_same_bits(tmp_path, pde):
    """The first parent is killed. The second, which continues, is stopped by Ctrl-C."""
    file = tmp_path / "a.h5"
    for how in (signal.SIGKILL, signal.SIGINT):
        process = started_writer(file, 2)
        workers = children(process.pid)
        os.kill(process.pid, how)
        process.join(60)
        assert len(workers) >= 2 and gone(workers)
        assert not file.exists()
    error = file.with_suffix(".log").read_text()
    assert error.count("Traceback") == 1 and "KeyboardInterrupt: stopped; " in error
    assert_finished_like_an_undisturbed_file(file, pde)


def test_no_samples_are_refused(tmp_path, pde):
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        write(tmp_path / "a.h5", pde, num_samples=0, seed=0, stream="test")


@pytest.mark.parametrize("size", [0, -1])
def test_an_impossible_chunk_size_is_refused_instead_of_writing_zeros(tmp_path, pde, size):
    with pytest.raises(ValueError, match=f"chunk size must be at least 1, got {size}"):
        write(tmp_path / "a.h5", pde, num_samples=2, seed=0, stream="test", chunk_size=size)
    assert list(tmp_path.iterdir()) == []
