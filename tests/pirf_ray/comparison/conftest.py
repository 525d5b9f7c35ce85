"""Fixtures of the benchmark's tests."""

from pathlib import Path

import pytest

from comparison_cells import Tilt
from pirf_ray.diffusion import checkpoints
from pirf_ray.methods import METHODS, Problem
from tiny_models import write_base


@pytest.fixture
def tilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The made-up method is registered."""
    monkeypatch.setitem(METHODS._parts, "tilt", Tilt())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Checkpoint of the tiny base model."""
    return write_base(tmp_path / "base")


@pytest.fixture
def problem(base: Path) -> Problem:
    """The tiny base model's problem."""
    info, denoiser = checkpoints.load_denoiser(base)
    return Problem(info=info, base=denoiser, num_steps=3)
