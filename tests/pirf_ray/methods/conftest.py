"""Fixtures of the methods' tests."""

import pytest

from pirf_ray.methods import Problem
from tiny_models import tiny_denoiser, tiny_info


@pytest.fixture
def tiny() -> Problem:
    """The problem of the tiny base model."""
    return Problem(info=tiny_info(), base=tiny_denoiser().requires_grad_(False), num_steps=4)
