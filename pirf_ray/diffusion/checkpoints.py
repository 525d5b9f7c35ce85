"""Checkpoints are directories of safetensors and JSON; nothing in them can run code.

``ema.safetensors`` the averaged weights by EDM's parameter names (the ones to sample with), ``model.safetensors`` the
weights themselves (only where training can go on from them),
``optimizer.pt`` tensors and plain containers only (read with weights_only=True), ``config.json`` the run's settings,
``meta.json`` format, kind, PDE, network, normalization, versions and hashes. Written to a temporary name and renamed.
"""

import hashlib
import io
import pickle
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from envs.common.files import FileFormatError, read_json, staged_directory, write_json
from envs.pdes import PDE, make_pde
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.networks import NetworkConfig

FORMAT = 1
MODEL, EMA, OPTIMIZER, CONFIG, META = "model.safetensors", "ema.safetensors", "optimizer.pt", "config.json", "meta.json"


class CheckpointError(FileFormatError):
    """A checkpoint that is missing, damaged or of another kind; the message names the file."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a denoiser is: enough to build it and to refuse it where it does not belong."""

    env_id: str
    """PDE that the model was trained on."""
    network: NetworkConfig
    """Architecture."""
    sigma_data: float
    """Standard deviation of the training data in model units."""
    parameters: dict[str, float] = field(default_factory=dict)
    """The PDE's parameters, such as the Reynolds number."""

    @property
    def resolution(self) -> int:
        return self.network.resolution

    def pde(self) -> PDE:
        return make_pde(self.env_id, self.resolution, **self.parameters)

    def build(self) -> Denoiser:
        return Denoiser(self.network, self.sigma_data)

    def to_json(self) -> dict[str, Any]:
        normalizer = self.pde().normalizer
        return {**asdict(self), "normalization": {"scale": normalizer.scale, "shift": normalizer.shift}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelInfo":
        fields = data["network"]
        sequences = {k: tuple(fields[k]) for k in ("channel_mult", "attn_resolutions", "periodic")}
        info = cls(
            env_id=data["env_id"],
            network=NetworkConfig(**{**fields, **sequences}),
            sigma_data=data["sigma_data"],
            parameters=data.get("parameters", {}),
        )
        normalizer = info.pde().normalizer
        stored = (tuple(data["normalization"]["scale"]), tuple(data["normalization"]["shift"]))
        if stored != (normalizer.scale, normalizer.shift):
            raise ValueError(f"normalization {stored} differs from that of {info.env_id}, {(normalizer.scale, normalizer.shift)}")
        return info


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """Hash of names, shapes and bits of a set of tensors, independent of their order."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        array = tensors[name].detach().cpu().numpy()
        digest.update(f"{name}:{array.dtype}:{array.shape};".encode())
        digest.update(array.tobytes(order="C"))
    return digest.hexdigest()


def save(
    path: Path,
    *,
    info: ModelInfo,
    model: dict[str, torch.Tensor] | None,
    ema: dict[str, torch.Tensor],
    optimizer: dict[str, Any] | None,
    config: dict[str, Any],
    meta: dict[str, Any],
) -> None:
    """Write a checkpoint directory atomically. ``optimizer``: tensors and plain containers. None: left out."""
    with staged_directory(path) as staging:
        hashes = {}
        for which, tensors, file in (("model", model, MODEL), ("ema", ema, EMA)):
            if tensors is not None:
                write_tensors(staging / file, tensors)
                hashes[which] = fingerprint(tensors)
        if optimizer is not None:
            state = io.BytesIO()
            torch.save(optimizer, state)
            (staging / OPTIMIZER).write_bytes(state.getbuffer())
        write_json(staging / CONFIG, config)
        write_json(staging / META, {**meta, "format": FORMAT, "info": info.to_json(), "hashes": hashes})


def write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file. Written from memory: a full disk is then an OSError, which neither library's own writing gives."""
    whole = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    path.write_bytes(safetensors.torch.save(whole))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file; CheckpointError if it is missing, cut short or not one."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from None


def load_meta(path: Path) -> tuple[ModelInfo, dict[str, Any]]:
    """What the checkpoint in directory ``path`` is."""
    if not path.is_dir():
        raise CheckpointError(f"{path}: no such checkpoint directory")
    try:
        meta = read_json(path / META)
    except FileFormatError as error:
        raise CheckpointError(str(error)) from None
    if meta.get("format") != FORMAT:
        raise CheckpointError(f"{path / META}: format {meta.get('format')!r}, this version reads {FORMAT}")
    try:
        return ModelInfo.from_json(meta["info"]), meta
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path / META}: {error}") from None


def load_weights(path: Path, which: str) -> dict[str, torch.Tensor]:
    """The ``model`` or ``ema`` tensors of a checkpoint, checked against the hash in its meta.json."""
    _, meta = load_meta(path)
    file = path / {"model": MODEL, "ema": EMA}[which]
    tensors = load_tensors(file)
    if not isinstance(meta.get("hashes"), dict):
        raise CheckpointError(f"{path / META}: holds no hashes of the weights")
    if fingerprint(tensors) != meta["hashes"].get(which):
        raise CheckpointError(f"{file}: does not match the hash in {META}: damaged or from another checkpoint")
    return tensors


def load_optimizer(path: Path) -> dict[str, Any]:
    try:
        return torch.load(path / OPTIMIZER, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path / OPTIMIZER}: no such file; this checkpoint cannot be resumed") from None
    except pickle.UnpicklingError:  # torch's own message advises to load it unsafely
        raise CheckpointError(f"{path / OPTIMIZER}: damaged, or holds more than tensors and plain containers; not read") from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"{path / OPTIMIZER}: damaged ({error})") from None


def load_denoiser(path: Path, which: str = "ema") -> tuple[ModelInfo, Denoiser]:
    """The denoiser of a base checkpoint, in evaluation mode, float32."""
    info, _ = load_meta(path)
    denoiser = info.build()
    try:
        denoiser.load_network(load_weights(path, which))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return info, denoiser.eval()
