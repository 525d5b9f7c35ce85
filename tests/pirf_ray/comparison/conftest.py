"""Fixtures of the benchmark's tests."""

from pathlib import Path

import pytest

from comparison_cells import register_tilt
from tiny_models import write_base


@pytest.fixture
def tilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up method is registered."""
    register_tilt(monkeypatch)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Checkpoint of the tiny base model."""
    return write_base(tmp_path / "base")
