"""Checkpoints: directories of safetensors and JSON. Nothing in them can run code.

- ``ema.safetensors``: the averaged weights by EDM's parameter names; samples are made with them
- ``model.safetensors``: the weights themselves, if a training can continue from the checkpoint
- ``optimizer.pt``: tensors and plain containers only; read with ``weights_only=True``
- ``config.json``: the settings of the training
- ``meta.json``: format, kind, PDE, network, normalization, and a hash of each set of weights

A checkpoint is written under a temporary name and then renamed.
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
    """Error of a checkpoint that is missing, damaged or of another kind. The message names the file."""


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """Description of a denoiser: all that is needed to build it, or to refuse it for another PDE."""

    env_id: str
    """PDE of the training data."""
    network: NetworkConfig
    """Architecture."""
    sigma_data: float
    """Standard deviation of the training data in model units."""
    parameters: dict[str, float] = field(default_factory=dict)
    """Parameters of the PDE, such as the Reynolds number."""

    @property
    def resolution(self) -> int:
        """Return the rows and columns of the fields."""
        return self.network.resolution

    def pde(self) -> PDE:
        """Return the PDE of the fields."""
        return make_pde(self.env_id, self.resolution, **self.parameters)

    def build(self) -> Denoiser:
        """Return a denoiser of this architecture with random weights."""
        denoiser = Denoiser(self.network, self.sigma_data)
        denoiser.pde = self.pde()
        return denoiser

    def to_json(self) -> dict[str, Any]:
        """Return the description as meta.json holds it, with the normalization of the PDE's fields."""
        normalizer = self.pde().normalizer
        return {**asdict(self), "normalization": {"scale": normalizer.scale, "shift": normalizer.shift}}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "ModelInfo":
        """Read the description back. ValueError if the PDE now has another normalization."""
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
        expected = (normalizer.scale, normalizer.shift)
        if stored != expected:
            raise ValueError(f"normalization {stored} differs from the normalization {expected} of {info.env_id}")
        return info


def fingerprint(tensors: dict[str, torch.Tensor]) -> str:
    """Return a hash of the names, shapes, types and bits of tensors. Their order and memory layout do not change it."""
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
    """Write a checkpoint directory atomically. Files of ``model`` or ``optimizer`` None are left out.

    ``optimizer``: tensors and plain containers only.
    """
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
    """Write a safetensors file from memory, so that a full disk raises OSError.

    The writers of safetensors and torch raise other errors.
    """
    whole = {name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    path.write_bytes(safetensors.torch.save(whole))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a safetensors file. CheckpointError if the file is missing, damaged or of another format."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, ValueError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from None


def load_meta(path: Path) -> tuple[ModelInfo, dict[str, Any]]:
    """Return the description of a checkpoint's model and the contents of its meta.json."""
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
    """Return the ``model`` or ``ema`` tensors of a checkpoint, checked against the hash in its meta.json."""
    _, meta = load_meta(path)
    file = path / {"model": MODEL, "ema": EMA}[which]
    tensors = load_tensors(file)
    if not isinstance(meta.get("hashes"), dict):
        raise CheckpointError(f"{path / META}: holds no hashes of the weights")
    if fingerprint(tensors) != meta["hashes"].get(which):
        raise CheckpointError(f"{file}: does not match the hash in {META}: damaged or from another checkpoint")
    return tensors


def load_optimizer(path: Path) -> dict[str, Any]:
    """Return the optimizer's state. CheckpointError if the file is missing, damaged or holds other objects."""
    try:
        state: dict[str, Any] = torch.load(path / OPTIMIZER, weights_only=True)
    except FileNotFoundError:
        raise CheckpointError(f"{path / OPTIMIZER}: no such file; this checkpoint cannot be resumed") from None
    except pickle.UnpicklingError:  # torch's own message advises the user to load the file unsafely
        raise CheckpointError(f"{path / OPTIMIZER}: damaged, or holds more than tensors and plain containers; not read") from None
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise CheckpointError(f"{path / OPTIMIZER}: damaged ({error})") from None
    return state


def load_denoiser(path: Path, which: str = "ema") -> tuple[ModelInfo, Denoiser]:
    """Return a base checkpoint's description and its denoiser, in evaluation mode, float32."""
    info, _ = load_meta(path)
    denoiser = info.build()
    try:
        denoiser.load_network(load_weights(path, which))
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return info, denoiser.eval()
