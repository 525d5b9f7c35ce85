"""Files that appear whole or not at all, also after a power loss; JSON; locks of directories."""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from envs.common import files
from envs.common.files import (
    DirectoryTakenError,
    FileFormatError,
    absolute,
    flush,
    locked,
    names_file,
    read_json,
    refuse_existing,
    staged_directory,
    staged_file,
    write_json,
)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The events that decide what a power loss leaves: which path was flushed, and what was renamed to what."""
    events: list[tuple[str, str]] = []
    fsync, replace = os.fsync, os.replace

    def spied_fsync(descriptor: int) -> None:
        events.append(("flush", os.readlink(f"/proc/self/fd/{descriptor}")))
        fsync(descriptor)

    def spied_replace(source: Path, target: Path) -> None:
        events.append(("rename", str(target)))
        replace(source, target)

    monkeypatch.setattr(os, "fsync", spied_fsync)
    monkeypatch.setattr(os, "replace", spied_replace)
    return events


# --- files ---


def test_a_staged_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.txt"
    with staged_file(path) as partial:
        partial.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


def write_then(path: Path, fail: Callable[[], object]) -> None:
    with staged_file(path) as partial:
        partial.write_text("new")
        fail()


def stop() -> None:
    raise RuntimeError("half way")


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_an_error_in_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(RuntimeError, match="half way"):
        write_then(path, stop)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_staged_file_is_on_the_disk_before_its_rename_and_its_name_after(tmp_path: Path, disk: list[tuple[str, str]]) -> None:
    path = tmp_path / "a.txt"
    with staged_file(path) as partial:
        partial.write_text("whole")
    assert disk == [("flush", str(partial)), ("rename", str(path)), ("flush", str(tmp_path))]


def test_a_block_that_writes_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.txt\.partial"), staged_file(tmp_path / "a.txt"):
        pass
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["write", "flush"])
def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    if moment == "flush":
        monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*a\.txt'"):
        write_then(path, full_disk if moment == "write" else lambda: None)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_only_an_error_without_a_file_gets_a_name(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as raised, names_file(tmp_path / "a"):
        (tmp_path / "b").read_text()
    assert raised.value.filename == str(tmp_path / "b")


def test_flush_takes_files_and_directories(tmp_path: Path, disk: list[tuple[str, str]]) -> None:
    (tmp_path / "a").write_text("1")
    flush(tmp_path / "a")
    flush(tmp_path)
    assert disk == [("flush", str(tmp_path / "a")), ("flush", str(tmp_path))]
    with pytest.raises(FileNotFoundError):
        flush(tmp_path / "b")


# --- directories ---


def content(directory: Path) -> dict[str, str]:
    return {str(p.relative_to(directory)): p.read_text() for p in sorted(directory.rglob("*")) if p.is_file()}


def fill(staging: Path, text: str) -> None:
    (staging / "inner").mkdir()
    (staging / "a").write_text(text)
    (staging / "inner" / "b").write_text(text)


def fill_then(path: Path, fail: Callable[[], object]) -> None:
    with staged_directory(path) as staging:
        fill(staging, "new")
        fail()


@pytest.mark.parametrize("replaces", [False, True])
def test_a_staged_directory_appears_or_replaces_whole(tmp_path: Path, replaces: bool) -> None:
    path = tmp_path / "new" / "run"
    if replaces:
        path.mkdir(parents=True)
        (path / "old").write_text("old")
    with staged_directory(path) as staging:
        fill(staging, "new")
        assert path.exists() == replaces
    assert content(path) == {"a": "new", "inner/b": "new"}
    assert list(path.parent.iterdir()) == [path]


def test_everything_in_a_staged_directory_is_readable_like_other_files(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with staged_directory(path) as staging:
        fill(staging, "x")
        (staging / "a").chmod(0o600)
    modes = {p: stat.S_IMODE(p.stat().st_mode) for p in (path, path / "inner", path / "a", path / "inner" / "b")}
    assert list(modes.values()) == [0o755, 0o755, 0o644, 0o644]


def test_an_error_in_the_block_keeps_the_old_directory(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "old").write_text("old")
    with pytest.raises(RuntimeError, match="half way"):
        fill_then(path, stop)
    assert content(path) == {"old": "old"} and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("replaces", [False, True])
def test_a_staged_directory_is_on_the_disk_before_its_rename_and_its_name_after(
    tmp_path: Path, replaces: bool, disk: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run"
    if replaces:
        path.mkdir()
    remove = files.shutil.rmtree
    monkeypatch.setattr(files.shutil, "rmtree", lambda p, **options: (disk.append(("remove", str(p))), remove(p, **options)))
    with staged_directory(path) as staging:
        fill(staging, "new")
    renamed = disk.index(("rename", str(path)))
    contents = {staging, staging / "a", staging / "inner", staging / "inner" / "b"}
    assert {("flush", str(p)) for p in contents} <= set(disk[:renamed])
    assert disk[renamed + 1] == ("flush", str(tmp_path))  # before the old directory is removed
    assert not [event for event in disk[:renamed] if event[0] == "remove"]


def test_a_full_disk_in_a_staged_directory_names_the_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*run'"):
        fill_then(tmp_path / "run", lambda: None)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", ["missing", "empty", "filled", "file"])
def test_an_output_directory_must_be_empty(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    if kind == "file":
        path.write_text("")
    elif kind != "missing":
        path.mkdir()
    if kind == "filled":
        (path / "a").write_text("")
    if kind in ("missing", "empty"):
        refuse_existing(path)
    else:
        with pytest.raises(DirectoryTakenError, match="run: output directory holds another run; continue it with --resume"):
            refuse_existing(path)


def test_absolute_expands_the_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert absolute(Path("~/a")) == absolute(Path("b/../a")) == tmp_path.resolve() / "a"


# --- JSON ---


def test_json_is_written_with_sorted_keys_and_read_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1, "a": [0.1, None]})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": [\n    0.1,\n    null\n  ],\n  "b": 1\n}\n'
    assert read_json(tmp_path / "a.json") == {"a": [0.1, None], "b": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"a\.json: no such file"),
        (b"", r"a\.json: damaged \("),
        (b'{"a": ', r"a\.json: damaged \("),
        (b"\xff\xfe\x00", r"a\.json: damaged \("),
        (b"[1]", r"a\.json: damaged \(holds a list, not an object\)"),
    ],
)
def test_json_that_is_no_object_is_refused(tmp_path: Path, text: bytes | None, message: str) -> None:
    if text is not None:
        (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(FileFormatError, match=message):
        read_json(tmp_path / "a.json")


# --- locks ---


def test_a_locked_directory_is_refused_until_it_is_free(tmp_path: Path) -> None:
    with (
        locked(tmp_path, "this run"),
        pytest.raises(DirectoryTakenError, match="another process is running this run"),
        locked(tmp_path, "this run"),
    ):
        raise AssertionError("locked twice")
    with locked(tmp_path, "this run"):
        pass


def test_a_lock_is_free_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="inside"), locked(tmp_path, "this run"):
        raise RuntimeError("inside")
    with locked(tmp_path, "this run"):
        pass


def test_a_patient_process_gets_the_lock_when_it_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LOCK_POLL_SECONDS", 0.01)
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with locked(tmp_path, "this run"):
            held.set()
            release.wait(60)

    owner = threading.Thread(target=hold)
    owner.start()
    assert held.wait(60)
    before = time.monotonic()
    with pytest.raises(DirectoryTakenError), locked(tmp_path, "this run", patience=0.05):
        pass
    assert time.monotonic() - before >= 0.05
    threading.Timer(0.05, release.set).start()
    with locked(tmp_path, "this run", patience=60):
        assert release.is_set()
    owner.join()


def test_a_lock_of_a_directory_that_its_owner_removed_is_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner removes the directory between another process's opening and locking of the file."""
    flock = files.fcntl.flock

    def removed_meanwhile(descriptor: int, how: int) -> None:
        (tmp_path / files.LOCK).unlink()
        flock(descriptor, how)

    monkeypatch.setattr(files.fcntl, "flock", removed_meanwhile)
    with pytest.raises(DirectoryTakenError), locked(tmp_path, "this run"):
        pass
