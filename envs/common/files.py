"""Files that appear whole or not at all, JSON files, and locks of directories."""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

LOCK_POLL_SECONDS = 0.2
LOCK = ".lock"
"""Name of the lock file in a locked directory."""


class FileFormatError(ValueError):
    """An error about a file that is missing, damaged or of another kind. Its message names the file."""


class DirectoryTakenError(FileExistsError):
    """An error about an output directory that holds another run or that another process uses."""


def absolute(path: Path) -> Path:
    """Return the absolute path, with ``~`` expanded. Ray's workers run in another directory and need it."""
    return path.expanduser().resolve()


def flush(path: Path) -> None:
    """Write the bytes of a file, or the names in a directory, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def names_file(path: Path) -> Iterator[None]:
    """Add the path to an error of the file system that names no file, such as the error of a full disk."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that replaces ``path`` when the block ends without an error.

    The files are on the disk before the rename, and the rename is on the disk before the function returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with names_file(path):
            yield staging
            _publish_tree(staging)
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, retired / path.name)
            os.replace(staging, path)
            flush(path.parent)
            shutil.rmtree(retired)
        else:
            os.replace(staging, path)
            flush(path.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _publish_tree(directory: Path) -> None:
    """Give a directory and its contents the usual modes (temporary files are private), and write them to the disk."""
    for entry in directory.iterdir():
        if entry.is_dir():
            _publish_tree(entry)
        else:
            entry.chmod(0o644)
            flush(entry)
    directory.chmod(0o755)
    flush(directory)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path whose file becomes ``path`` when the block ends without an error.

    The file is on the disk before the rename, and the rename is on the disk before the function returns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with names_file(path):
            yield partial
            flush(partial)
        os.replace(partial, path)
        flush(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write a JSON file, whole or not at all."""
    with staged_file(path) as partial:
        partial.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file. FileFormatError if the file is missing, damaged or holds something else."""
    try:
        data = json.loads(path.read_text())
    except FileNotFoundError:
        raise FileFormatError(f"{path}: no such file") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FileFormatError(f"{path}: damaged ({error})") from None
    if not isinstance(data, dict):
        raise FileFormatError(f"{path}: damaged (holds a {type(data).__name__}, not an object)")
    return data


def refuse_existing(root: Path) -> None:
    """Raise DirectoryTakenError if ``root`` is a file, or a directory that is not empty."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DirectoryTakenError(
            f"{root}: output directory holds another run; continue it with --resume, or choose another --out"
        )


@contextmanager
def locked(root: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Lock a directory against other processes. DirectoryTakenError after ``patience`` seconds without the lock.

    The kernel holds the lock. It releases the lock when the process ends, however the process ends.
    """
    give_up = time.monotonic() + patience
    with (root / LOCK).open("w") as file:
        while not _acquire(file.fileno(), root / LOCK):
            if time.monotonic() >= give_up:
                raise DirectoryTakenError(f"{root}: another process is running {what}")
            time.sleep(LOCK_POLL_SECONDS)
        yield


def _acquire(descriptor: int, path: Path) -> bool:
    """Return whether the lock was free and ``path`` still names it: the last owner may have removed the directory."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False
