"""Files that appear whole or not at all, JSON, and locks of directories."""

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


class FileFormatError(ValueError):
    """A file that is missing, damaged or of another kind; the message names it."""


class DirectoryTakenError(FileExistsError):
    """An output directory that holds another run, or that another process uses."""


def absolute(path: Path) -> Path:
    """Return the path as Ray's workers need it, which run in a session folder: absolute, ``~`` expanded."""
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
    """Add the path to an error of the file system that names no file, such as a full disk's."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def staged_directory(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of ``path`` that replaces it when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with names_file(path):
            yield staging
        staging.chmod(0o755)
        for file in staging.iterdir():
            file.chmod(0o644)  # temporary files are private; a checkpoint is as readable as any file
        if path.exists():
            retired = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            os.replace(path, retired / path.name)
            os.replace(staging, path)
            shutil.rmtree(retired)
        else:
            os.replace(staging, path)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def staged_file(path: Path) -> Iterator[Path]:
    """Give a temporary sibling of ``path`` that becomes it, or replaces it, when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        with names_file(path):
            yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, data: Any) -> None:
    """Write JSON, whole or not at all."""
    with staged_file(path) as partial:
        partial.write_text(json.dumps(data, indent=2, sort_keys=True) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. FileFormatError if the file is missing, damaged or holds something else."""
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
    """Raise DirectoryTakenError if a new run cannot have this directory."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DirectoryTakenError(
            f"{root}: output directory holds another run; continue it with --resume, or choose another --out"
        )


@contextmanager
def locked(root: Path, what: str, patience: float = 0.0) -> Iterator[None]:
    """Lock a directory against other processes. DirectoryTakenError after ``patience`` seconds without the lock.

    The lock is the kernel's: it is released when the process ends, however that ends.
    """
    give_up = time.monotonic() + patience
    with (root / ".lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= give_up:
                    raise DirectoryTakenError(f"{root}: another process is running {what}") from None
                time.sleep(LOCK_POLL_SECONDS)
        yield
