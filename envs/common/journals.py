"""Journals: JSON records, one per line. One process appends records, and any process reads them.

A line that a killed process left half written is no record.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from envs.common.files import FileFormatError, flush, names_file, staged_file

Record = dict[str, Any]
TAIL_BYTES = 65_536
"""Bytes first read from the end of a journal to find its last record."""


class Journal:
    """A file of records."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: Mapping[str, Any], *, durable: bool = False) -> None:
        """Add a record. With ``durable`` the record is on the disk when the function returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not self.path.exists()
        with names_file(self.path), self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            if durable:
                file.flush()
                os.fsync(file.fileno())
        if durable and is_new:
            flush(self.path.parent)

    def records(self) -> list[Record]:
        """Return every record. FileFormatError names a line that is not a JSON object."""
        return [self._record(number, line) for number, line in enumerate(self._lines(), start=1)]

    def latest(self) -> Record | None:
        """Return the last record without reading the whole journal, or None if the journal has no record."""
        if not self.path.exists():
            return None
        with self.path.open("rb") as file:
            size, tail = file.seek(0, os.SEEK_END), TAIL_BYTES
            while True:
                file.seek(max(0, size - tail))
                complete = file.read().split(b"\n")[:-1]
                if len(complete) > 1 or tail >= size:  # otherwise the only line may have begun before the tail
                    return json.loads(complete[-1]) if complete else None
                tail *= 2

    def rewind(self, wanted: Callable[[Record], bool]) -> None:
        """Keep only the records that are ``wanted``, and drop a half-written last line."""
        if self.path.exists():
            kept = [record for record in self.records() if wanted(record)]
            with staged_file(self.path) as partial:
                partial.write_text("".join(json.dumps(record) + "\n" for record in kept))

    def repair(self) -> None:
        """Drop a half-written last line."""
        if self.path.exists():
            whole = self.path.read_bytes().rfind(b"\n") + 1
            if whole < self.path.stat().st_size:
                os.truncate(self.path, whole)

    def _lines(self) -> list[bytes]:
        return self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []

    def _record(self, number: int, line: bytes) -> Record:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise FileFormatError(f"{self.path}, line {number}: not JSON ({error})") from None
        if not isinstance(record, dict):
            raise FileFormatError(f"{self.path}, line {number}: holds a {type(record).__name__}, not an object")
        return record


class JournalReader:
    """A reader that follows a journal while another process writes it."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self._position = 0
        self._inode = 0

    def fresh(self) -> tuple[list[Record], bool]:
        """Return the records since the last call, and whether the journal was rewound since.

        After a rewind the reader returns all records again.
        """
        path = self.journal.path
        if not path.exists():
            return [], False
        with path.open("rb") as file:
            inode, size = os.fstat(file.fileno()).st_ino, file.seek(0, os.SEEK_END)
            rewound = self._position > 0 and (inode != self._inode or size < self._position)  # a rewind replaces the file
            self._inode = inode
            self._position = 0 if rewound else self._position
            file.seek(self._position)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self._position += len(whole)
        return [json.loads(line) for line in whole.splitlines()], rewound
