"""A part of the kill matrix; ``python tests/support/kill_matrix.py`` runs all of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import kill_matrix


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Iterator[kill_matrix.Run]:
    return kill_matrix.undisturbed(tmp_path_factory.mktemp("kills"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "place"), [("actor", "updating"), ("worker", "saving"), ("driver", "updating"), ("ctrl-c", "updating")]
)
def test_what_is_killed_costs_nothing(kind: str, place: str, reference: kill_matrix.Run, tmp_path: Path) -> None:
    verdict = kill_matrix.disturbed(kind, place, reference, tmp_path, seed=0)
    assert verdict.problems == () and verdict.killed, str(verdict)
