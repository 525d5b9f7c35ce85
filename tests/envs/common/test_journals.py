"""Journals: what is appended is read back, and a killed writer's half line is no record."""

import os
from pathlib import Path

import pytest

from envs.common import journals
from envs.common.files import FileFormatError
from envs.common.journals import Journal, JournalReader


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "run" / "metrics.jsonl")


def fill(journal: Journal, count: int) -> None:
    for update in range(1, count + 1):
        journal.append({"update": update, "value": 0.1 * update})


def break_off(journal: Journal) -> None:
    """Leave the half line of a killed writer."""
    with journal.path.open("a") as file:
        file.write('{"update": 9, "val')


def updates(records: list[journals.Record]) -> list[int]:
    return [record["update"] for record in records]


def test_records_are_read_back_in_order(journal: Journal) -> None:
    fill(journal, 3)
    assert journal.records() == [{"update": i, "value": 0.1 * i} for i in (1, 2, 3)]
    assert journal.latest() == {"update": 3, "value": 0.1 * 3}
    assert journal.path.read_text().count("\n") == 3


def test_a_journal_without_a_file_or_a_record_is_empty(journal: Journal) -> None:
    assert journal.records() == [] and journal.latest() is None
    assert JournalReader(journal).fresh() == ([], False)
    journal.rewind(lambda record: True)
    journal.repair()
    assert not journal.path.exists()
    journal.path.parent.mkdir()
    journal.path.write_text("")
    assert journal.records() == [] and journal.latest() is None
    break_off(journal)
    assert journal.records() == [] and journal.latest() is None


def test_a_half_written_line_is_no_record_and_is_repaired(journal: Journal) -> None:
    fill(journal, 2)
    break_off(journal)
    assert updates(journal.records()) == [1, 2] and journal.latest()["update"] == 2
    journal.repair()
    journal.append({"update": 3})
    assert updates(journal.records()) == [1, 2, 3]


def test_rewinding_keeps_the_wanted_records_and_no_half_line(journal: Journal) -> None:
    fill(journal, 4)
    break_off(journal)
    journal.rewind(lambda record: record["update"] <= 2)
    assert updates(journal.records()) == [1, 2]
    journal.append({"update": 3})
    assert updates(journal.records()) == [1, 2, 3]
    assert list(journal.path.parent.iterdir()) == [journal.path]


@pytest.mark.parametrize("tail", [1, 30, 40, 1000])
def test_the_latest_record_is_found_whatever_its_length(journal: Journal, tail: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if it is longer than the tail that is read first."""
    monkeypatch.setattr(journals, "TAIL_BYTES", tail)
    journal.append({"update": 1})
    assert journal.latest() == {"update": 1}
    journal.append({"update": 2, "text": "x" * 500})
    assert journal.latest() == {"update": 2, "text": "x" * 500}
    journal.append({"update": 3})
    assert journal.latest() == {"update": 3}


@pytest.mark.parametrize(
    ("line", "message"), [("{", r"metrics\.jsonl, line 2: not JSON"), ("[1]", r"line 2: holds a list, not an object")]
)
def test_a_damaged_line_is_named(journal: Journal, line: str, message: str) -> None:
    fill(journal, 1)
    with journal.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(FileFormatError, match=message):
        journal.records()


def test_a_durable_record_and_the_name_of_a_new_journal_are_on_the_disk(
    journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (flushed.append(os.readlink(f"/proc/self/fd/{descriptor}")), fsync(descriptor))
    )
    journal.append({"update": 1}, durable=True)
    assert flushed == [str(journal.path), str(journal.path.parent)]
    journal.append({"update": 2}, durable=True)
    assert flushed[2:] == [str(journal.path)]
    journal.append({"update": 3})
    assert len(flushed) == 3


def test_a_reader_gets_each_whole_record_once(journal: Journal) -> None:
    reader = JournalReader(journal)
    fill(journal, 2)
    records, rewound = reader.fresh()
    assert updates(records) == [1, 2] and not rewound
    assert reader.fresh() == ([], False)
    with journal.path.open("a") as file:
        file.write('{"update": 3}\n{"upd')
        file.flush()
        assert reader.fresh() == ([{"update": 3}], False)
        file.write('ate": 4}\n')
    assert reader.fresh() == ([{"update": 4}], False)


def test_a_reader_notices_a_rewind_and_reads_the_journal_again(journal: Journal) -> None:
    reader = JournalReader(journal)
    fill(journal, 3)
    reader.fresh()
    journal.rewind(lambda record: record["update"] <= 1)
    records, rewound = reader.fresh()
    assert updates(records) == [1] and rewound
    journal.append({"update": 2})
    assert reader.fresh() == ([{"update": 2}], False)


def test_a_reader_notices_a_rewind_although_the_journal_grew_again(journal: Journal) -> None:
    reader = JournalReader(journal)
    fill(journal, 3)
    reader.fresh()
    journal.rewind(lambda record: record["update"] <= 1)
    for update in (2, 3, 4):
        journal.append({"update": update})
    records, rewound = reader.fresh()
    assert updates(records) == [1, 2, 3, 4] and rewound
