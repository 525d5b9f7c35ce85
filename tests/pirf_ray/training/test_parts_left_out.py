"""Runs of PDEs that leave parts out are refused in one sentence before anything is made; presets suit them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bare_pdes import Heat, clouds
from commands import refuse
from envs.pdes import make_pde
from pirf_ray import train
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.learning.updates import TermMetrics
from pirf_ray.training.finetuning import local_tuning
from pirf_ray.training.presets import small, smoke
from registered_pdes import registered
from tiny_models import tiny_config, tiny_denoiser, tiny_network


@pytest.fixture(autouse=True)
def pdes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Heat without a solver, and stored samples of Clouds."""
    with registered(Heat, clouds(tmp_path_factory.mktemp("stored"))):
        yield


def base(path: Path, env: str) -> Path:
    """Write a base model of a PDE at 8 x 8."""
    network = tiny_network(channels=len(make_pde(env, 8).channels))
    info = ModelInfo(env_id=env, network=network, sigma_data=0.14)
    tensors = Denoiser(network, 0.14).network.state_dict()
    checkpoints.save(path, info=info, model=None, ema=tensors, optimizer=None, config={}, meta={"kind": "base"})
    return path


@pytest.mark.parametrize(
    ("env", "flags", "message"),
    [
        ("Heat-v0", ["--guard", "enforce"], "Heat-v0 has no solver (solve): the guard needs one; give --guard off"),
        (
            "Heat-v0",
            ["--guard", "off"],
            "Heat-v0 has no solver (solve): the final evaluation needs one; give held-out fields: --data",
        ),
        ("Clouds-v0", ["--corrections", "3"], "Clouds-v0 has no residual operator (operators): "),
    ],
)
def test_what_a_pde_cannot_give_is_told_before_the_run_is_made(
    env: str, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["--env", env, "--preset", "smoke", "--resolution", "8", "--base", str(base(tmp_path / "base", env))]
    error = refuse(train.main, [*start, "--reward-form", "plain", "--out", str(tmp_path / "run"), *flags], capsys)
    assert message in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("preset", [small, smoke])
def test_presets_correct_only_by_an_operator(preset: Any) -> None:
    assert preset("Clouds-v0").correction.corrections == 0
    assert preset("Heat-v0").correction.corrections > 0
    assert preset("Burgers-v0").correction.corrections > 0


def test_a_residual_without_a_floor_is_not_told_over_it() -> None:
    """metrics.jsonl would hold Infinity."""
    config = tiny_config(env="Heat-v0", reward_form="plain", guard="off", updates=1)
    info = ModelInfo(env_id="Heat-v0", network=tiny_network(), sigma_data=0.14)
    records: list[Any] = []
    local_tuning(config, info, tiny_denoiser()).fit(records.append)
    term: TermMetrics = records[0].metrics.terms["laplace"]
    assert term.is_residual and term.mean > 0 and term.over_floor is None
    assert "residual/over_floor" not in records[0].to_json()
