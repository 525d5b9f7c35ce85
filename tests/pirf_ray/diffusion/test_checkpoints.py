"""Checkpoints: round trip, damage, nothing that runs code; pretraining: it learns, and resuming changes nothing."""

import json
import math
import os

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from envs.common import files
from envs.data import datasets
from envs.pdes import make_pde
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError, ModelInfo
from pirf_ray.diffusion.losses.denoising import denoising_loss
from pirf_ray.diffusion.networks import NetworkConfig
from pirf_ray.pretraining.trainer import Pretrainer, PretrainSettings

TINY = NetworkConfig(resolution=8, model_channels=8, channel_mult=(1, 2), num_blocks=1, periodic=(False, True))
INFO = ModelInfo(env_id="Burgers-v0", network=TINY, sigma_data=0.15)


@pytest.fixture
def saved(tmp_path):
    """A checkpoint directory and the tensors in it."""
    model, ema = INFO.build().network.state_dict(), INFO.build().network.state_dict()
    optimizer = {"optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3}]}, "ema_updates": 4}
    path = tmp_path / "run" / "checkpoint"
    checkpoints.save(
        path, info=INFO, model=model, ema=ema, optimizer=optimizer, config={"batch": 4}, meta={"kind": "base", "updates": 3}
    )
    return path, model, ema, optimizer


@pytest.mark.parametrize("which", ["model", "ema"])
def test_weights_come_back_bit_for_bit(saved, which):
    path, model, ema, _ = saved
    expected = {"model": model, "ema": ema}[which]
    info, denoiser = checkpoints.load_denoiser(path, which)
    assert info == INFO and denoiser.sigma_data == 0.15 and not denoiser.training
    assert checkpoints.fingerprint(checkpoints.load_weights(path, which)) == checkpoints.fingerprint(expected)
    assert checkpoints.fingerprint(denoiser.network.state_dict()) == checkpoints.fingerprint(expected)


def test_settings_meta_and_optimizer_come_back(saved):
    path, _, _, optimizer = saved
    info, meta = checkpoints.load_meta(path)
    assert (info, meta["kind"], meta["updates"], meta["format"]) == (INFO, "base", 3, 1)
    assert files.read_json(path / "config.json") == {"batch": 4}
    assert checkpoints.load_optimizer(path) == optimizer
    assert sorted(p.name for p in path.iterdir()) == [
        "config.json",
        "ema.safetensors",
        "meta.json",
        "model.safetensors",
        "optimizer.pt",
    ]


def test_saving_again_replaces_and_a_failed_save_keeps_the_old(saved):
    path, model, ema, _ = saved
    arguments = {"info": INFO, "ema": ema, "optimizer": None, "config": {}}
    checkpoints.save(path, model=model, meta={"updates": 9}, **arguments)
    assert checkpoints.load_meta(path)[1]["updates"] == 9 and not (path / "optimizer.pt").exists()
    with pytest.raises(TypeError):
        checkpoints.save(path, model=model, meta={"updates": object()}, **arguments)
    assert checkpoints.load_meta(path)[1]["updates"] == 9
    assert [p.name for p in path.parent.iterdir()] == ["checkpoint"]  # no staging directory is left


def test_fingerprint_depends_on_names_shapes_and_bits_but_not_on_order_or_layout():
    a, b = torch.arange(6.0), torch.ones(2, 2)
    same = checkpoints.fingerprint({"a": a, "b": b})
    assert checkpoints.fingerprint({"b": b, "a": a}) == same
    image = torch.randn(2, 3, 4, 4)
    assert checkpoints.fingerprint({"a": image.to(memory_format=torch.channels_last)}) == checkpoints.fingerprint({"a": image})
    others = [{"a": a, "c": b}, {"a": a.reshape(2, 3), "b": b}, {"a": a, "b": b.double()}, {"a": -a, "b": b}]
    assert len({same, *map(checkpoints.fingerprint, others)}) == 5  # -0.0 and 0.0 differ in bits


def cut(file):
    file.write_bytes(file.read_bytes()[:-100])


def flip_last_byte(file):
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def change_a_weight(file):
    tensors = load_file(file)
    tensors["map_layer0.bias"] += 1e-6
    save_file(tensors, file)


DAMAGES = {
    "cut short": cut,
    "changed byte": flip_last_byte,
    "changed weight": change_a_weight,
    "garbage": lambda f: f.write_bytes(b"garbage"),
    "empty": lambda f: f.write_bytes(b""),
    "missing": lambda f: f.unlink(),
}


@pytest.mark.parametrize("name", ["model", "ema"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_weights_are_refused_by_file_name(saved, name, damage):
    path = saved[0]
    damage(path / f"{name}.safetensors")
    with pytest.raises(CheckpointError, match=rf"checkpoint/{name}\.safetensors"):
        checkpoints.load_denoiser(path, name)
    checkpoints.load_denoiser(path, "ema" if name == "model" else "model")  # the other one is untouched


def test_weights_of_another_architecture_are_refused(saved):
    path = saved[0]
    meta = json.loads((path / "meta.json").read_text())
    meta["info"]["network"]["num_blocks"] = 2
    (path / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match="do not fit the network.*missing"):
        checkpoints.load_denoiser(path)


META_DAMAGES = {
    "other format": ({"format": 99}, "format 99, this version reads 1"),
    "no format": ({"format": None}, "format None"),
    "unknown env": ({"info": {"env_id": "Stokes-v0"}}, "unknown env 'Stokes-v0'"),
    "impossible network": ({"info": {"network": {"num_blocks": 0}}}, "num_blocks and channels must be at least 1"),
    "unknown network field": ({"info": {"network": {"depth": 1}}}, "depth"),
    "other normalization": ({"info": {"normalization": {"scale": [2.0]}}}, "normalization .* differs"),
    "no hashes": ({"hashes": None}, ""),
}


def merged(data, changes):
    return {**data, **{k: merged(data[k], v) if isinstance(v, dict) else v for k, v in changes.items()}}


@pytest.mark.parametrize(("changes", "message"), META_DAMAGES.values(), ids=META_DAMAGES.keys())
def test_wrong_meta_is_refused_by_file_name(saved, changes, message):
    file = saved[0] / "meta.json"
    file.write_text(json.dumps(merged(json.loads(file.read_text()), changes)))
    with pytest.raises(CheckpointError, match=rf"meta\.json.*{message}"):
        checkpoints.load_denoiser(saved[0])


@pytest.mark.parametrize("text", ["{", "", "[1, 2]", "\x00\xff"], ids=["cut short", "empty", "list", "binary"])
def test_unreadable_json_is_refused_by_file_name(saved, text):
    (saved[0] / "meta.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CheckpointError, match=r"checkpoint/meta\.json"):
        checkpoints.load_meta(saved[0])


def test_missing_checkpoints_and_files_are_refused_by_name(saved):
    with pytest.raises(CheckpointError, match="gone: no such checkpoint directory"):
        checkpoints.load_denoiser(saved[0].parent / "gone")
    (saved[0] / "meta.json").unlink()
    with pytest.raises(CheckpointError, match=r"meta\.json: no such file"):
        checkpoints.load_meta(saved[0])


class RunsCode:
    """What a malicious file would hold: unpickling it runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_an_optimizer_file_cannot_run_code(saved, tmp_path):
    path, proof = saved[0], tmp_path / "proof"
    torch.save({"optimizer": RunsCode(f"touch {proof}")}, path / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint/optimizer\.pt"):
        checkpoints.load_optimizer(path)
    assert not proof.exists()
    torch.load(path / "optimizer.pt", weights_only=False)
    assert proof.exists()  # the file is malicious indeed


@pytest.mark.parametrize("damage", [cut, *list(DAMAGES.values())[3:]], ids=["cut short", "garbage", "empty", "missing"])
def test_a_damaged_optimizer_file_is_refused_by_name(saved, damage):
    damage(saved[0] / "optimizer.pt")
    with pytest.raises(CheckpointError, match=r"checkpoint/optimizer\.pt"):
        checkpoints.load_optimizer(saved[0])


# --- pretraining ---

SETTINGS = PretrainSettings(network=TINY, images=480, batch=8, learning_rate=5e-3, warmup_images=32, ema_decay=0.9)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    pde, path = make_pde("Burgers-v0", 8), tmp_path_factory.mktemp("data") / "train.h5"
    datasets.write(path, pde, num_samples=64, seed=0, stream="train")
    return datasets.FieldFile(path, pde)


def pretrainer(data, **changes):
    settings = PretrainSettings(**{**{f: getattr(SETTINGS, f) for f in SETTINGS.__dataclass_fields__}, **changes})
    return Pretrainer(settings, make_pde("Burgers-v0", 8), data, torch.device("cpu"))


def fixed_loss(run, data):
    """Loss on the same fields, sigmas and noise whatever the weights."""
    y = run.pde.normalizer.to_model(data.read(range(64)))
    rng = torch.Generator().manual_seed(0)
    sigma = torch.linspace(math.log(0.05), math.log(1.0), 64).exp()
    with torch.no_grad():
        return denoising_loss(run.denoiser.eval(), y, sigma, torch.randn(y.shape, generator=rng)).item()


def state(run):
    return [checkpoints.fingerprint(t) for t in (run.denoiser.network.state_dict(), run.ema.tensors)]


def test_pretraining_lowers_the_loss_and_ends_after_its_updates(data):
    run = pretrainer(data)
    assert run.info.sigma_data == pytest.approx(run.pde.normalizer.to_model(data.read(range(64))).std().item(), abs=1e-4)
    before = fixed_loss(run, data)
    while not run.finished:
        assert math.isfinite(run.step())
    assert run.update_index == 60
    assert before == pytest.approx(1, abs=0.15)  # F is nearly 0: the loss of the ideal Gaussian denoiser
    assert fixed_loss(run, data) < 0.7 * before


@pytest.mark.parametrize("augment", [True, False])
def test_a_resumed_run_is_the_uninterrupted_run(data, tmp_path, augment):
    whole, first, second = (pretrainer(data, augment=augment) for _ in range(3))
    losses = [whole.step() for _ in range(6)]
    resumed = [first.step() for _ in range(3)]
    first.save(tmp_path / "c")
    torch.manual_seed(99)  # the global generator has no part in it
    second.load(tmp_path / "c")
    assert state(second) == state(first) and second.update_index == 3
    resumed += [second.step() for _ in range(3)]
    assert resumed == losses
    assert state(second) == state(whole) and second.mean_loss == whole.mean_loss


def test_the_seed_decides_weights_and_batches_and_leaves_the_global_generator_alone(data):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, other = pretrainer(data), pretrainer(data), pretrainer(data, seed=1)
    a.step()
    b.step()
    assert torch.equal(torch.rand(1), expected)
    assert state(a) == state(b)
    assert checkpoints.fingerprint(other.denoiser.network.state_dict()) != checkpoints.fingerprint(
        pretrainer(data).denoiser.network.state_dict()
    )


def test_other_settings_do_not_resume(data, tmp_path):
    run = pretrainer(data)
    run.save(tmp_path / "c")
    with pytest.raises(CheckpointError, match="other settings: batch, learning_rate"):
        pretrainer(data, batch=4, learning_rate=1e-3).load(tmp_path / "c")


def test_learning_rate_warms_up_from_a_positive_rate_and_ends_near_zero(data):
    run = pretrainer(data)
    rates = []
    for index in range(60):
        run.update_index = index
        rates.append(run.learning_rate())
    # warm-up over 4 updates of 8, times half a cosine over 60 updates: 5e-3 * 1/4; at update 30, half the peak
    assert [rates[0], rates[3], rates[30]] == pytest.approx([1.25e-3, 5e-3 * 0.5 * (1 + math.cos(math.pi / 20)), 2.5e-3])
    assert 0 < rates[-1] < 1e-2 * max(rates) and int(np.argmax(rates)) == 3


def test_a_non_finite_loss_stops_training_before_the_update(data):
    run = pretrainer(data)
    next(run.denoiser.parameters()).data.fill_(math.nan)
    before = checkpoints.fingerprint(run.ema.tensors)
    with pytest.raises(FloatingPointError, match="loss of update 0 is nan"):
        run.step()
    assert run.update_index == 0 and checkpoints.fingerprint(run.ema.tensors) == before


BAD_SETTINGS = [
    ("images", 0, "images must be positive, got 0"),
    ("batch", -1, "batch must be positive, got -1"),
    ("learning_rate", 0.0, "learning_rate must be"),
    ("noise_std", math.nan, "noise_std must be"),
    ("images", 7, "at least one batch of 8, got 7"),
]


@pytest.mark.parametrize(("name", "value", "message"), BAD_SETTINGS)
def test_impossible_settings_are_refused(name, value, message):
    with pytest.raises(ValueError, match=message):
        PretrainSettings(**{"batch": 8, name: value})
