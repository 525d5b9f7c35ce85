"""Chunks of a data file: computed by one or several processes, and stored so that a kill loses no finished chunk.

``FILE.partial/`` holds the finished chunks, beside their request and a lock. Each chunk is flushed and renamed whole. HDF5 is no
journal: a kill in mid-write may leave an unreadable file. The HDF5 file is therefore made from the chunks at the end.
"""

import multiprocessing
import multiprocessing.connection
import os
import shutil
import signal
import threading
import zipfile
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

from envs.common.files import DirectoryTakenError, flush, locked, read_json, staged_file, write_json

CHUNKS = "chunk-*.npz"
Solved = tuple[np.ndarray, np.ndarray]
"""Fields (b, c, h, w) of a chunk, float32, and the sum over them of each operator's mean square residual, float64."""
Compute = Callable[[range], Solved]
"""A function of sample ids that returns their chunk."""


class DataWriteError(OSError, ValueError):
    """An error about a data file that could not be written: a full disk, another writer, or a worker that died.

    Its message names the way to continue.
    """


class ChunkDirectory:
    """The directory of the chunks of a data file, locked by its single writer. Chunks appear whole or not at all.

    Entering raises ValueError if the chunks belong to another request (``overwrite`` removes them instead), and DataWriteError
    if another process is writing. Leaving removes the directory if it holds no chunk.
    """

    def __init__(self, path: Path, request: Mapping[str, str | int], *, overwrite: bool) -> None:
        """Name the data file and the request for it. Nothing is made before the directory is entered."""
        self.path, self.request, self.overwrite = path, dict(request), overwrite
        self.directory = path.with_name(path.name + ".partial")
        self.temporary = self.directory / "unfinished"

    def __enter__(self) -> "ChunkDirectory":
        if self.directory.exists() and not self.directory.is_dir():
            raise FileExistsError(f"{self.directory} is not a directory of chunks; remove it to write {self.path}")
        with ExitStack() as held:
            with self.explained():
                self.directory.mkdir(parents=True, exist_ok=True)
                self._lock(held)
            refuse_existing_file(self.path)
            self._begin()
            self._held = held.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.empty:
            shutil.rmtree(self.directory, ignore_errors=True)
        self._held.close()

    def _lock(self, held: ExitStack) -> None:
        try:
            held.enter_context(locked(self.directory, "a writer"))
        except (DirectoryTakenError, FileNotFoundError):  # not found: the last writer has just removed the directory
            raise DataWriteError(f"{self.path} is being written by another process") from None

    def _begin(self) -> None:
        """Store the request, or compare it with the request whose chunks are here."""
        file = self.directory / "request.json"
        if file.exists() and not self.overwrite:
            before = read_json(file)
            names = [name for name in {**before, **self.request} if before.get(name) != self.request.get(name)]
            if names:
                differences = "; ".join(f"{name} was {before.get(name)!r}, now {self.request.get(name)!r}" for name in names)
                raise ValueError(
                    f"{self.directory} holds chunks of another request: {differences}. Repeat that request to continue it; "
                    "to start over remove the directory or give --overwrite-partial"
                )
            return
        for chunk in self.directory.glob(CHUNKS):
            chunk.unlink()
        with self.explained():
            write_json(file, self.request)

    @property
    def empty(self) -> bool:
        """Whether no chunk is stored."""
        return not any(self.directory.glob(CHUNKS))

    def holds(self, ids: range) -> bool:
        """Return whether the chunk of these sample ids is stored."""
        return self._file(ids).exists()

    def _file(self, ids: range) -> Path:
        return self.directory / CHUNKS.replace("*", f"{ids.start:09d}")

    def store(self, ids: range, solved: Solved) -> None:
        """Store a chunk. It counts as stored once its bytes are on the disk under its name."""
        with self.explained(), staged_file(self._file(ids)) as partial, partial.open("wb") as file:
            np.savez(file, fields=solved[0], sums=solved[1])

    def load(self, ids: range) -> Solved:
        """Return a stored chunk. A damaged chunk is removed, and DataWriteError asks for the same request again."""
        try:
            with np.load(self._file(ids), allow_pickle=False) as chunk:
                return chunk["fields"], chunk["sums"]
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
            self._file(ids).unlink()
            raise DataWriteError(
                f"{self._file(ids)} was damaged and is removed; the same request makes it again ({error})"
            ) from None

    def finish(self) -> None:
        """Give the data file its name and remove the chunks. The data file was made from all chunks as ``temporary``."""
        with self.explained():
            flush(self.temporary)
            refuse_existing_file(self.path)
            os.replace(self.temporary, self.path)
            flush(self.path.parent)
        shutil.rmtree(self.directory)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors of the disk into DataWriteError, which names the kept chunks and the way to continue."""
        try:
            yield
        except (DataWriteError, FileExistsError):
            raise
        except OSError as error:
            self.temporary.unlink(missing_ok=True)
            raise DataWriteError(
                f"writing {self.path} failed: {error}. Finished chunks stay in {self.directory}. A full disk needs room for "
                "twice the data. After that the same call continues from there"
            ) from error


def refuse_existing_file(path: Path) -> None:
    """Raise FileExistsError if a data file exists, since data files are never overwritten."""
    if path.exists():
        raise FileExistsError(f"{path} exists; data files are never overwritten")


# --- computing ---


def in_order(compute: Compute, ranges: list[range], workers: int) -> Generator[tuple[range, Solved], None, None]:
    """Yield every range with its chunk, in order.

    Each chunk is computed with a single torch thread, so its bits do not depend on ``workers``. At most two chunks per worker
    are in progress or waiting. Closing the generator ends the worker processes. DataWriteError if a worker process dies.
    """
    if min(workers, len(ranges)) <= 1:
        for ids in ranges:
            yield ids, _with_one_thread(compute, ids)
        return
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker)
    waiting: deque[tuple[range, Future[Solved]]] = deque()
    todo, finished = iter(ranges), False
    try:
        waiting.extend((ids, _submit(pool, compute, ids)) for ids in islice(todo, 2 * workers))
        while waiting:
            ids, future = waiting.popleft()
            solved = future.result()
            waiting.extend((following, _submit(pool, compute, following)) for following in islice(todo, 1))
            yield ids, solved
        finished = True
    except BrokenProcessPool:
        raise DataWriteError(
            "a worker process died (out of memory?); finished chunks are kept: repeat the call with fewer workers"
        ) from None
    finally:
        processes = list((pool._processes or {}).values())
        pool.shutdown(wait=finished, cancel_futures=True)
        for process in processes if not finished else ():
            process.terminate()
            process.join()


def _with_one_thread(compute: Compute, ids: range) -> Solved:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return compute(ids)
    finally:
        torch.set_num_threads(threads)


def _submit(pool: ProcessPoolExecutor, compute: Compute, ids: range) -> "Future[Solved]":
    """Return the future of a chunk. A worker process started here inherits a blocked SIGINT: the parent handles Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(compute, ids)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """Use a single torch thread, and end this process when its parent ends, for whatever reason."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
