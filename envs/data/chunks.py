"""Chunks of a file being written: computed by one or several processes, stored so that a kill at any moment loses none.

``FILE.partial/`` holds the finished chunks, each written whole, flushed and renamed, beside the request they belong to
and a lock. HDF5 itself is no journal: a file that is killed in mid-write may be unreadable, so it is made at the end.
"""

import fcntl
import json
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
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from types import TracebackType

import numpy as np
import torch

Solved = tuple[np.ndarray, np.ndarray]
"""Fields (b, c, h, w) float32 of one chunk, and the sums over them of each operator's residual, float64."""
Compute = Callable[[range], Solved]


class DataWriteError(OSError, ValueError):
    """A file could not be written to its end (disk full, another writer, a worker that died); its message says how to go on."""


class ChunkDirectory:
    """The directory of the chunks of ``path``, locked by its one writer. Chunks appear whole or not at all.

    Entering raises ValueError if the chunks there belong to another request (``overwrite`` removes them instead),
    DataWriteError if another process is writing. Leaving removes the directory if it holds no chunk.
    """

    def __init__(self, path: Path, request: Mapping[str, str | int], *, overwrite: bool) -> None:
        self.path, self.request, self.overwrite = path, dict(request), overwrite
        self.directory = path.with_name(path.name + ".partial")
        self.temporary = self.directory / "unfinished"

    def __enter__(self) -> "ChunkDirectory":
        if self.directory.exists() and not self.directory.is_dir():
            raise FileExistsError(f"{self.directory} is no directory of chunks; remove it to write {self.path}")
        with self.explained():
            self.directory.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT)
        try:
            self._hold()
            refuse_existing(self.path)
            self._begin()
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.empty:
            shutil.rmtree(self.directory, ignore_errors=True)
        os.close(self._lock)  # releases it, as does the death of the process

    def _hold(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.path.samestat(os.fstat(self._lock), os.stat(self.directory / "lock"))
        except (BlockingIOError, FileNotFoundError):
            ours = False
        if not ours:  # another holds it, or the directory is of a writer that has just ended
            raise DataWriteError(f"{self.path} is being written by another process")

    def _begin(self) -> None:
        """Write the request down, or compare it with the one whose chunks are here."""
        file = self.directory / "request.json"
        if file.exists() and not self.overwrite:
            before = json.loads(file.read_text())
            names = [name for name in {**before, **self.request} if before.get(name) != self.request.get(name)]
            if names:
                differences = "; ".join(f"{name} was {before.get(name)!r}, now {self.request.get(name)!r}" for name in names)
                raise ValueError(
                    f"{self.directory} holds chunks of another request: {differences}. To go on ask for the same again; "
                    "to start over remove it or give --overwrite-partial"
                )
            return
        for chunk in self.directory.glob("chunk-*"):
            chunk.unlink()
        self._publish("request.json", lambda temporary: temporary.write_text(json.dumps(self.request, indent=1)))

    @property
    def empty(self) -> bool:
        return not any(self.directory.glob("chunk-*"))

    def holds(self, ids: range) -> bool:
        return self._file(ids).exists()

    def _file(self, ids: range) -> Path:
        return self.directory / f"chunk-{ids.start:09d}.npz"

    def store(self, ids: range, solved: Solved) -> None:
        """A chunk counts as done once its bytes are on the disk under its name."""

        def save(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, fields=solved[0], sums=solved[1])

        self._publish(self._file(ids).name, save)

    def load(self, ids: range) -> Solved:
        """A stored chunk. DataWriteError if it was damaged; it is removed then, so that the same request makes it anew."""
        try:
            with np.load(self._file(ids), allow_pickle=False) as chunk:
                return chunk["fields"], chunk["sums"]
        except (zipfile.BadZipFile, ValueError, KeyError, EOFError) as error:
            self._file(ids).unlink()
            raise DataWriteError(f"{self._file(ids)} was damaged and is removed; ask again to make it anew ({error})") from None

    def finish(self) -> None:
        """Give the file made of all chunks, ``temporary``, its name and remove the chunks."""
        with self.explained():
            _flush(self.temporary)
            refuse_existing(self.path)
            os.replace(self.temporary, self.path)
            _flush(self.path.parent)
        shutil.rmtree(self.directory)

    def _publish(self, name: str, save: Callable[[Path], object]) -> None:
        with self.explained():
            save(self.temporary)
            _flush(self.temporary)
            os.replace(self.temporary, self.directory / name)
            _flush(self.directory)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Errors of the disk say that nothing is lost and how to go on."""
        try:
            yield
        except (DataWriteError, FileExistsError):
            raise
        except OSError as error:
            self.temporary.unlink(missing_ok=True)
            raise DataWriteError(
                f"writing {self.path} failed: {error}. Finished chunks stay in {self.directory}; with that mended (a full disk "
                "needs room for twice the data) ask again: it goes on from there"
            ) from error


def refuse_existing(path: Path) -> None:
    if path.exists():
        raise FileExistsError(f"{path} exists; data files are never overwritten")


def _flush(path: Path) -> None:
    """Bytes of a file, or names in a directory, onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- computing ---


def in_order(compute: Compute, ranges: list[range], workers: int) -> Generator[tuple[range, Solved], None, None]:
    """compute(ids) of every range, in order, each with one torch thread: the bits do not depend on ``workers``.

    At most two chunks a worker are under way or waiting. Closing the generator ends the worker processes.
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
            "a worker process died (out of memory?); finished chunks are kept: ask again, with fewer workers"
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
    """Submit; a process that this starts inherits a blocked SIGINT, so that Ctrl-C is the parent's to answer."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return pool.submit(compute, ids)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
    """One torch thread, and an end with the parent, however that ends."""
    torch.set_num_threads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        multiprocessing.connection.wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
