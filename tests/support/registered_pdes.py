"""PDEs that are registered while a test runs."""

from collections.abc import Iterator
from contextlib import contextmanager

import gymnasium
import pytest

from envs.pdes import PDE, REGISTRY, register
from registries import restored


@contextmanager
def registered(*classes: type[PDE]) -> Iterator[pytest.MonkeyPatch]:
    """Register classes, and forget them and every PDE that the block registers."""
    before = set(gymnasium.registry)
    with pytest.MonkeyPatch.context() as patch:
        restored(REGISTRY, patch)
        for cls in classes:
            register(cls)
        yield patch
    for name in set(gymnasium.registry) - before:
        del gymnasium.registry[name]
