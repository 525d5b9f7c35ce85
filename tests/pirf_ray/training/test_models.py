"""The one loader: models of a run, of its checkpoints, of a base model and of a shipped name."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError
from pirf_ray.diffusion.model import TUNED, Model
from pirf_ray.diffusion.sampling import SamplerSettings
from pirf_ray.steering.correction import Correction
from pirf_ray.training.models import find_checkpoint, load_model, with_sampling
from pirf_ray.training.runs import BEST, RunDirectory
from tiny_models import RESOLUTION, start_run, tiny_config, tiny_denoiser, tiny_info, tiny_tuning, write_base

CONFIG = tiny_config(operator="simpson", corrections=3, guard="off", updates=2, checkpoint_every=1, num_steps=4, solver="euler")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    """Finish a run that rewards another operator than the PDE's default."""
    made = start_run(tmp_path_factory.mktemp("runs"), CONFIG)
    tiny_tuning(CONFIG, made).fit()
    return made


@pytest.fixture
def copied(run: RunDirectory, tmp_path: Path) -> Path:
    """Copy the run, to damage the copy."""
    shutil.copytree(run.paths.root, tmp_path / "run")
    return tmp_path / "run"


def tensors(model: Model) -> dict[str, torch.Tensor]:
    return dict(model.policy.tuned.network.named_parameters())


def samples(model: Model) -> torch.Tensor:
    return model.sample(range(3), seed=1, stream="t")[TUNED]


def noise() -> torch.Tensor:
    return torch.randn((2, 1, RESOLUTION, RESOLUTION), generator=torch.Generator().manual_seed(0))


def test_a_run_is_the_model_of_its_kept_weights_and_its_settings(run: RunDirectory) -> None:
    loaded = load_model(run.paths.root)
    model = loaded.model
    kept = checkpoints.load_weights(run.paths.checkpoints / BEST, "ema")
    base = tiny_denoiser().network.state_dict()
    assert any(not torch.equal(kept[name], base[name]) for name in kept)
    for name, tensor in tensors(model).items():
        assert torch.equal(tensor, kept.get(name, base[name])), name
    for name, tensor in model.policy.base.network.named_parameters():
        assert torch.equal(tensor, base[name]), name
    assert loaded.config == CONFIG
    assert (model.info, model.sampler) == (tiny_info(), CONFIG.sampler)
    assert (model.policy.scope, model.policy.switch_sigma) == ("tail", CONFIG.process.sigmas[CONFIG.prefix_steps])


@pytest.mark.parametrize("name", [BEST, "update_000002"])
def test_a_checkpoint_of_a_run_is_the_same_model(run: RunDirectory, name: str) -> None:
    """Without a guard the last update is kept, so both hold the same averages."""
    assert find_checkpoint(run.paths.root) == run.paths.checkpoints / BEST
    loaded = load_model(run.paths.checkpoints / name)
    assert loaded.config == CONFIG
    assert torch.equal(samples(loaded.model), samples(load_model(str(run.paths.root)).model))
    earlier = load_model(run.paths.checkpoints / "update_000001").model
    assert not torch.equal(samples(earlier), samples(loaded.model))


def test_a_run_corrects_by_the_operator_that_it_rewarded(run: RunDirectory) -> None:
    model = load_model(run.paths.root).model
    assert model.rewarded_operator == "simpson" != model.pde.default_operator
    assert model.finisher is not None and model.finisher.steps == 3
    x = noise()
    own, default = (Correction(model.pde, 3, operator)(x) for operator in ("simpson", model.pde.default_operator))
    assert torch.equal(model.finisher(x), own)
    assert not torch.allclose(own, default)
    more = with_sampling(model, num_steps=None, corrections=5)
    assert torch.equal(more.finisher(x), Correction(model.pde, 5, "simpson")(x))


def test_a_base_model_samples_as_it_is(tmp_path: Path) -> None:
    loaded = load_model(write_base(tmp_path / "base"))
    model = loaded.model
    assert loaded.config is None
    assert (model.finisher, model.own_sampler, model.sampler) == (None, None, SamplerSettings())
    assert model.rewarded_operator == model.pde.default_operator
    base = tiny_denoiser().network.state_dict()
    for denoiser in (model.policy.base, model.policy.tuned):
        assert all(torch.equal(tensor, base[name]) for name, tensor in denoiser.network.named_parameters())


def test_a_shipped_name_is_its_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_model("Burgers-v0").model
    assert (model.info.env_id, model.info.resolution, model.finisher) == ("Burgers-v0", 32, None)
    assert load_model("Burgers-v0", resolution=32).model.info == model.info
    with pytest.raises(CheckpointError, match="no base model for Burgers-v0 at 64x64 ships .*Burgers-v0 at 32x32"):
        load_model("Burgers-v0", resolution=64)
    monkeypatch.chdir(tmp_path)
    write_base(tmp_path / "Burgers-v0")  # a path of the user's own goes before the shipped name
    assert load_model("Burgers-v0").model.info.resolution == RESOLUTION


def test_a_run_with_another_base_model_is_refused(copied: Path) -> None:
    shutil.rmtree(copied / "base")
    write_base(copied / "base", tiny_denoiser(seed=1))
    with pytest.raises(CheckpointError, match="base: not the base model that .*best was tuned from"):
        load_model(copied)


def test_a_damaged_kept_checkpoint_is_named(copied: Path) -> None:
    file = copied / "checkpoints" / BEST / checkpoints.EMA
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CheckpointError, match=r"best/ema\.safetensors: damaged"):
        load_model(copied)


def test_what_is_no_model_is_named(copied: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="nowhere: no such checkpoint or run directory, and no shipped model .*Burgers-v0"):
        load_model(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    shutil.rmtree(copied / "checkpoints" / BEST)  # a run that has kept nothing yet
    for path in (tmp_path / "empty", copied):
        with pytest.raises(CheckpointError, match=f"{path.name}: neither a checkpoint nor a run with a kept checkpoint"):
            load_model(path)


def test_sampling_is_changed_where_it_is_asked_and_nowhere_else(run: RunDirectory) -> None:
    model = load_model(run.paths.root).model
    assert with_sampling(model, num_steps=None, corrections=None) is model
    finer = with_sampling(model, num_steps=8, corrections=None)
    assert finer.sampler == SamplerSettings(num_steps=8, solver="euler")
    assert finer == replace(model, sampler=finer.sampler)
    bare = with_sampling(model, num_steps=None, corrections=0)
    assert bare.finisher is None and bare == replace(model, finisher=None)
    assert model.finisher is not None and model.sampler.num_steps == 4
    assert not torch.allclose(samples(bare), samples(model))
