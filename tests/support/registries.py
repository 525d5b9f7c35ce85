"""Registries that a test may add to."""

import pytest

from envs.common.registry import Registry


def restored(registry: "Registry[type]", monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after the test what it registers."""
    monkeypatch.setattr(registry, "_parts", dict(registry._parts))
    monkeypatch.setattr(registry, "_owners", dict(registry._owners))
