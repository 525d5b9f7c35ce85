"""Writing HDF5 data files: interrupted, killed, out of disk or shared, it goes on and ends with the same bits."""

import errno
import json
import os
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

from envs.data import chunks
from envs.data.datasets import DataWriteError, FieldFile, validate, write
from envs.pdes import make_pde
from envs.pdes.burgers import Burgers
from places import ROOT

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
        patch.setattr(*((chunks.np, "savez") if where == "chunk" else (h5py.AttributeManager, "update")), full)
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
from envs.data.datasets import write
from envs.pdes import make_pde
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    write(Path(sys.argv[1]), make_pde("Burgers-v0", 8), num_samples=60, seed=3, stream="test", chunk_size=2, workers=int(sys.argv[2]))
"""


def writer(tmp_path, file, workers):
    script = tmp_path / "writer.py"
    script.write_text(WRITER)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
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
