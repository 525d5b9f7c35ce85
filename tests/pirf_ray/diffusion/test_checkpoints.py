"""Checkpoints: round trip, atomic writes, damage, files that would run code."""

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from envs.common import files
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError
from tiny_models import tiny_info

INFO = tiny_info()


@pytest.fixture
def saved(tmp_path):
    """Write a checkpoint; return its directory and its tensors."""
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
    assert info == INFO and denoiser.sigma_data == INFO.sigma_data and not denoiser.training
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
    """Object of a malicious file: unpickling runs its command."""

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
