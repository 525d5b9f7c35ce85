"""Fixtures of several files. One thread for every test, unless OMP_NUM_THREADS says otherwise: the machine is small."""

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ["PIRF_RAY_CACHE"] = tempfile.mkdtemp(prefix="pirf_ray-cache-")

import torch

from envs.data import datasets
from envs.data.datasets import FieldFile
from tiny_pretraining import PDE8

torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
# A background job of a shell ignores Ctrl-C, and so would every command that a test starts.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> FieldFile:
    """Training fields of the tiny pretraining."""
    path = tmp_path_factory.mktemp("data") / "train.h5"
    datasets.write(path, PDE8, num_samples=64, seed=0, stream="train")
    return FieldFile(path, PDE8)


@pytest.fixture(scope="session", autouse=True)
def few_real_fields() -> Iterator[None]:
    """A guard that compares with few solved fields: solving its 1,024 takes longer than a tiny training.

    Of the session, so that fixtures of modules train with it too.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pirf_ray.training.guard.GUARD_REAL", 64)
        yield


@pytest.fixture
def short_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cards of base models that are measured with two sampler steps only."""
    monkeypatch.setattr("pirf_ray.evaluation.cards.CARD_STEPS", (2,))


@pytest.fixture
def write(tmp_path: Path) -> Callable[[bytes], Path]:
    """Writes the bytes of a hostile pickle."""

    def write_file(content: bytes) -> Path:
        path = tmp_path / "hostile.pkl"
        path.write_bytes(content)
        return path

    return write_file


def pytest_unconfigure() -> None:
    """Remove the cache of this session's constants."""
    shutil.rmtree(os.environ["PIRF_RAY_CACHE"], ignore_errors=True)
