"""Data files and training data of PDEs that leave parts out: made, imported, validated, or refused in one sentence."""

import json
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np
import pytest

from bare_pdes import Heat, clouds, rows_of
from commands import refuse
from envs.data.datasets import FieldFile
from envs.pdes import make_pde
from pirf_ray import data, pretrain
from registered_pdes import registered
from tiny_pretraining import SMOKE

CLOUDS = ["--env", "Clouds-v0", "--resolution", "8"]
HEAT = ["--env", "Heat-v0", "--resolution", "8"]


@pytest.fixture(autouse=True)
def pdes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Heat without a solver, and 50 stored samples of Clouds: 40 of the stream train, 10 of every other."""
    with registered(Heat, clouds(tmp_path_factory.mktemp("stored"))):
        yield


def test_without_a_solver_nothing_is_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refuse(data.main, [*HEAT, "--out", str(tmp_path / "heat.h5")], capsys)
    assert error.startswith(
        "error: Heat-v0 has no solver (solve): --out needs one; import the fields of another code: --import-npy"
    )
    assert not list(tmp_path.iterdir())


def test_stored_samples_are_written_all_by_default(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "clouds.h5"
    data.main([*CLOUDS, "--out", str(out)])
    assert "40 samples of Clouds-v0 at 8x8" in capsys.readouterr().out
    file = FieldFile(out, make_pde("Clouds-v0", 8))
    assert sorted(rows_of(file.read(range(40)))) == list(range(40)) and file.floors == {}
    data.main(["--validate", str(out)])
    assert "valid; 40 samples" in capsys.readouterr().out


def test_more_samples_than_are_stored_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*CLOUDS, "--stream", "test", "--out", str(tmp_path / "clouds.h5"), "--num-samples"]
    error = refuse(data.main, [*flags, "11"], capsys)
    assert "--num-samples must be at most 10, the stored samples of Clouds-v0 for the stream 'test', got 11" in error
    assert not list(tmp_path.iterdir())
    data.main([*flags, "10"])
    with h5py.File(tmp_path / "clouds.h5") as file:
        assert len(file["fields"]) == 10


def imported(path: Path, channels: tuple[str, ...]) -> list[str]:
    """Return the flags that import 6 made-up fields of noise, whose residual is far from any solution's."""
    flags = ["--import-npy", "--axes", "sample,y,x", "--extent", "y=1", "x=1", "--channel"]
    for channel in channels:
        np.save(path / f"{channel}.npy", np.random.default_rng(0).normal(1e3, 1e3, (6, 8, 8)).astype("float32"))
        flags.append(f"{channel}={path / f'{channel}.npy'}")
    return flags


def test_fields_of_a_pde_without_a_solver_are_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a floor, and without a warning: there are no fields of our own to compare with."""
    flags = [*imported(tmp_path, ("T",)), "--layout", "y=vertex", "x=vertex"]
    data.main([*HEAT, "--out", str(tmp_path / "heat.h5"), *flags])
    said = capsys.readouterr()
    assert "6 samples of Heat-v0 at 8x8" in said.out and "residual floor, laplace: " in said.out
    assert "warning" not in said.err
    data.main(["--validate", str(tmp_path / "heat.h5")])
    with h5py.File(tmp_path / "heat.h5") as file:
        assert json.loads(file.attrs["floors"]).keys() == {"laplace"} and file.attrs["solver"] == "imported"


def test_fields_of_a_law_without_operators_are_imported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [*imported(tmp_path, ("depth", "height")), "--layout", "y=periodic", "x=cell"]
    data.main([*CLOUDS, "--out", str(tmp_path / "clouds.h5"), *flags])
    said = capsys.readouterr()
    assert "6 samples of Clouds-v0" in said.out and "floor" not in said.out and "warning" not in said.err


@pytest.mark.parametrize(
    ("env", "flags", "message"),
    [
        ("Heat-v0", [], "Heat-v0 has no solver (solve): pretraining without --data needs one; give training fields: --data FILE"),
        ("Clouds-v0", ["--training-samples", "41"], "--training-samples must be at most 40, the stored samples of Clouds-v0"),
    ],
)
def test_training_data_that_are_not_there_are_named_before_anything_is_made(
    env: str, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refuse(pretrain.main, ["--env", env, *SMOKE, "--out", str(tmp_path / "out"), *flags], capsys)
    assert not (tmp_path / "out").exists()
