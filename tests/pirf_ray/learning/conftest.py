"""A guard that compares with few real fields: solving 1,024 of them takes longer than the trainings here."""

import pytest


@pytest.fixture(autouse=True)
def small_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pirf_ray.training.guard.GUARD_REAL", 32)
