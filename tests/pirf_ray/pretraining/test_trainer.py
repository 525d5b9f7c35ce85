"""The trainer of base models: learning, resuming, seeds, start, precision, compilation, dropout."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from envs.common import files
from envs.common.checks import ConfigError
from envs.data.datasets import FieldFile
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError, load_weights
from pirf_ray.diffusion.losses.denoising import denoising_loss
from pirf_ray.pretraining.trainer import Batches, Pretrainer, PretrainSettings
from tiny_models import tiny_network
from tiny_pretraining import CPU, PDE8, SETTINGS, same


def trainer(data: FieldFile, *, compiled: bool = False, network: dict | None = None, **changes: object) -> Pretrainer:
    settings = replace(SETTINGS, network=tiny_network(**(network or {})), **changes)
    return Pretrainer(settings, PDE8, data, CPU, compiled=compiled)


def steps(run: Pretrainer, number: int) -> dict[str, torch.Tensor]:
    """Return the weights after so many more updates."""
    for _ in range(number):
        run.step()
    return {name: tensor.clone() for name, tensor in run.denoiser.network.state_dict().items()}


def fixed_loss(run: Pretrainer, data: FieldFile) -> float:
    """Return the loss on fixed fields, sigmas and noise."""
    y = run.pde.normalizer.to_model(data.read(range(64)))
    generator = torch.Generator().manual_seed(0)
    sigma = torch.linspace(math.log(0.05), math.log(1.0), 64).exp()
    with torch.no_grad():
        return denoising_loss(run.denoiser.eval(), y, sigma, torch.randn(y.shape, generator=generator)).item()


def state(run: Pretrainer) -> list[str]:
    return [checkpoints.fingerprint(tensors) for tensors in (run.denoiser.network.state_dict(), run.ema.tensors)]


def test_pretraining_lowers_the_loss_and_ends_after_its_updates(data: FieldFile) -> None:
    run = trainer(data)
    assert run.info.sigma_data == pytest.approx(run.pde.normalizer.to_model(data.read(range(64))).std().item(), abs=1e-4)
    before = fixed_loss(run, data)
    while not run.finished:
        assert math.isfinite(run.step())
    assert run.update_index == 60
    assert before == pytest.approx(1, abs=0.15)  # F is nearly 0: the loss of the ideal Gaussian denoiser
    assert fixed_loss(run, data) < 0.7 * before


@pytest.mark.parametrize("augment", [True, False])
def test_a_resumed_training_is_the_uninterrupted_training(data: FieldFile, tmp_path: Path, augment: bool) -> None:
    whole, first, second = (trainer(data, augment=augment) for _ in range(3))
    losses = [whole.step() for _ in range(6)]
    resumed = [first.step() for _ in range(3)]
    first.save(tmp_path / "c")
    torch.manual_seed(99)  # the global generator has no part in it
    second.load(tmp_path / "c")
    assert state(second) == state(first) and second.update_index == 3
    resumed += [second.step() for _ in range(3)]
    assert resumed == losses
    assert state(second) == state(whole) and second.mean_loss == whole.mean_loss


def test_the_seed_decides_weights_and_batches_and_leaves_the_global_generator_alone(data: FieldFile) -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, other, fresh = trainer(data), trainer(data), trainer(data, seed=1), trainer(data)
    a.step()
    b.step()
    assert torch.equal(torch.rand(1), expected)
    assert state(a) == state(b)
    assert not same(other.denoiser.network.state_dict(), fresh.denoiser.network.state_dict())


def test_other_settings_and_other_data_do_not_resume(data: FieldFile, tmp_path: Path) -> None:
    run = trainer(data)
    run.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match="other settings: batch, learning_rate"):
        trainer(data, batch=4, learning_rate=1e-3).load(tmp_path / "c")
    meta = files.read_json(tmp_path / "c" / "meta.json")
    meta["data"]["seed"] = 7
    files.write_json(tmp_path / "c" / "meta.json", meta)
    with pytest.raises(CheckpointError, match="was trained on .*'seed': 7.*, not on the given data .*'seed': 0"):
        trainer(data).load(tmp_path / "c")


def test_learning_rate_warms_up_from_a_positive_rate_and_ends_near_zero(data: FieldFile) -> None:
    run = trainer(data)
    rates = []
    for index in range(60):
        run.update_index = index
        rates.append(run.learning_rate())
    # warm-up over 4 updates of 8, times half a cosine over 60 updates: 5e-3 * 1/4; at update 30, half the peak
    assert [rates[0], rates[3], rates[30]] == pytest.approx([1.25e-3, 5e-3 * 0.5 * (1 + math.cos(math.pi / 20)), 2.5e-3])
    assert 0 < rates[-1] < 1e-2 * max(rates) and rates.index(max(rates)) == 3


def test_a_non_finite_loss_stops_training_before_the_update(data: FieldFile) -> None:
    run = trainer(data)
    next(run.denoiser.parameters()).data.fill_(math.nan)
    before = checkpoints.fingerprint(run.ema.tensors)
    with pytest.raises(FloatingPointError, match="loss of update 0 is nan"):
        run.step()
    assert run.update_index == 0 and checkpoints.fingerprint(run.ema.tensors) == before


BAD_SETTINGS = [
    ("images", 0, "images must be positive, got 0"),
    ("batch", -1, "batch must be positive, got -1"),
    ("learning_rate", 0.0, "learning_rate must be positive, got 0.0"),
    ("noise_std", math.nan, "noise_std must be positive, got nan"),
    ("images", 7, "at least one batch of 8, got 7"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_SETTINGS)
def test_impossible_settings_are_refused(name: str, value: float, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PretrainSettings(**{"batch": 8, name: value})


# --- its start ---


@pytest.fixture(scope="module")
def other(data: FieldFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint of another training of the same architecture."""
    run, path = trainer(data, seed=5), tmp_path_factory.mktemp("other") / "checkpoint"
    steps(run, 3)
    run.save(path)
    return path


def test_it_begins_with_the_averaged_weights_of_another_model(data: FieldFile, other: Path, tmp_path: Path) -> None:
    run = trainer(data)
    run.start_from(other)
    start = load_weights(other, "ema")
    assert same(run.denoiser.network.state_dict(), start)
    assert same(run.ema.tensors, start)
    assert (run.update_index, run.ema.updates) == (0, 0)
    run.step()
    assert not same(run.denoiser.network.state_dict(), start)
    run.save(tmp_path / "c")
    said = {"env_id": "Burgers-v0", "images": 24, "weights": checkpoints.fingerprint(start)}
    assert checkpoints.load_meta(tmp_path / "c")[1]["init"] == said == run.meta()["init"]


def test_a_model_of_another_architecture_is_refused_by_flag(data: FieldFile, other: Path) -> None:
    run = trainer(data, network={"num_blocks": 2})
    with pytest.raises(CheckpointError, match=r"--init .*num_blocks=1.*expected .*num_blocks=2"):
        run.start_from(other)


# --- batches, dropout ---


def test_batches_prepared_in_threads_are_those_made_one_by_one(data: FieldFile) -> None:
    plain, threaded = Batches(SETTINGS, PDE8, data), Batches(SETTINGS, PDE8, data, prepared=3)
    for update in (0, 1, 2, 9, 10, 4):  # onwards, and as a resumed training jumps
        for ours, theirs in zip(threaded[update], plain[update], strict=True):
            assert torch.equal(ours, theirs)


def test_dropout_is_a_function_of_the_seed_and_the_update(data: FieldFile, tmp_path: Path) -> None:
    dropout = {"dropout": 0.3}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    whole = steps(trainer(data, network=dropout), 4)
    assert torch.equal(torch.rand(1), expected)  # the global generator is left as it was
    first, second = trainer(data, network=dropout), trainer(data, network=dropout)
    steps(first, 2)
    first.save(tmp_path / "c")
    torch.manual_seed(99)
    second.load(tmp_path / "c")
    assert same(steps(second, 2), whole)
    assert not same(steps(trainer(data), 4), whole)  # there was dropout


# --- precision and compilation ---


def test_bf16_is_the_networks_alone_and_close_to_float32(data: FieldFile) -> None:
    full, half = trainer(data), trainer(data, precision="bf16")
    assert not same(steps(half, 5), steps(full, 5))
    assert half.mean_loss == pytest.approx(full.mean_loss, rel=2e-2)
    state = [*half.denoiser.parameters(), *half.ema.tensors.values(), *(p.grad for p in half.denoiser.parameters())]
    assert {tensor.dtype for tensor in state} == {torch.float32}
    while not half.finished:
        assert math.isfinite(half.step())
    assert half.mean_loss < 0.95


def test_precision_is_settled_by_the_device() -> None:
    auto = PretrainSettings()
    assert [auto.on(kind).precision for kind in ("cpu", "cuda")] == ["float32", "tf32"]
    assert [replace(auto, precision="bf16").on(kind).precision for kind in ("cpu", "cuda")] == ["bf16", "bf16"]
    with pytest.raises(ConfigError, match="--precision tf32 needs an NVIDIA GPU"):
        replace(auto, precision="tf32").on("cpu")


def test_precision_is_among_the_settings_that_a_resumed_training_keeps(data: FieldFile, tmp_path: Path) -> None:
    path = tmp_path / "c"
    trainer(data).save(path)
    assert files.read_json(path / "config.json")["precision"] == "float32"
    with pytest.raises(CheckpointError, match="other settings: precision"):
        trainer(data, precision="bf16").load(path)
    old = files.read_json(path / "config.json")
    del old["precision"]  # as written before there was one
    files.write_json(path / "config.json", old)
    trainer(data).load(path)


def test_compiling_the_network_changes_no_tensors_name_and_little_of_the_result(
    data: FieldFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled: list[object] = []
    backend = partial(torch.compile, backend=lambda graph, _: compiled.append(graph) or graph.forward)  # takes no minute
    monkeypatch.setattr(torch, "compile", backend)
    plain, run = trainer(data), trainer(data, compiled=True)
    expected = steps(plain, 2)
    torch.testing.assert_close(steps(run, 2), expected, rtol=1e-4, atol=1e-6)
    assert compiled
    run.save(tmp_path / "c")
    assert load_weights(tmp_path / "c", "model").keys() == load_weights(tmp_path / "c", "ema").keys() == expected.keys()
    plain.load(tmp_path / "c")  # each continues from the other's checkpoint
    checkpoints.load_denoiser(tmp_path / "c")
