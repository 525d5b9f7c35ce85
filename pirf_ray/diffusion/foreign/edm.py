"""Import of a network pickle of EDM or DiffusionPDE as a denoiser. No code of the pickle runs.

The network must be an EDMPrecond around a SongUNet in the ddpmpp configuration (Karras et al. 2022, arXiv 2206.00364). This
is our UNet with zero padding. The source text in the pickle is ignored: a class with EDM's name is taken to be EDM's class.
"""

import hashlib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from envs.pdes import make_pde
from pirf_ray.diffusion.checkpoints import CheckpointError
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.foreign import edm_pickle
from pirf_ray.diffusion.foreign.edm_pickle import TensorRef
from pirf_ray.diffusion.foreign.inert_pickle import Inert, Refused
from pirf_ray.diffusion.networks import Conv, NetworkConfig

PRECOND_ARGUMENTS = (
    "img_resolution",
    "img_channels",
    "label_dim",
    "use_fp16",
    "sigma_min",
    "sigma_max",
    "sigma_data",
    "model_type",
)
DDPMPP = {
    "label_dim": 0,
    "channel_mult_emb": 4,
    "embedding_type": "positional",
    "channel_mult_noise": 1,
    "encoder_type": "standard",
    "decoder_type": "standard",
    "resample_filter": [1, 1],
}
"""Options that must have the fixed values of our UNet."""
SONG_DEFAULTS: dict[str, Any] = {
    "img_resolution": None,
    "in_channels": None,
    "out_channels": None,
    "label_dim": DDPMPP["label_dim"],
    "augment_dim": 0,
    "model_channels": 128,
    "channel_mult": [1, 2, 2, 2],
    "channel_mult_emb": DDPMPP["channel_mult_emb"],
    "num_blocks": 4,
    "attn_resolutions": [16],
    "dropout": 0.10,
    "label_dropout": 0,
    "embedding_type": DDPMPP["embedding_type"],
    "channel_mult_noise": DDPMPP["channel_mult_noise"],
    "encoder_type": DDPMPP["encoder_type"],
    "decoder_type": DDPMPP["decoder_type"],
    "resample_filter": DDPMPP["resample_filter"],
}
"""Arguments of SongUNet, in order, with EDM's defaults."""
BOX = np.full((1, 1, 2, 2), 0.25, dtype=np.float32)
"""Resampling kernel of EDM for resample_filter [1, 1]: the mean of 2x2 points."""
AUGMENT = "map_augment.weight"
MAX_RESOLUTION = 8192


@dataclass(frozen=True, kw_only=True)
class EdmNetwork:
    """Description of one network in a pickle."""

    config: NetworkConfig
    """Architecture."""
    sigma_data: float
    """Standard deviation of the training data, as the preconditioning has it."""
    tensors: dict[str, TensorRef]
    """Tensors by EDM's names without ``model.``; their numbers are not read yet."""
    notes: tuple[str, ...]
    """Parts of the pickle that the import leaves out or changes."""


def class_state(thing: Any, class_name: str) -> dict[str, Any]:
    """Return the attributes of an object of EDM's class ``class_name``. Refused for any other object."""
    if not isinstance(thing, Inert) or thing.class_name != class_name:
        found = ascii(thing.class_name[:80])[1:-1] if isinstance(thing, Inert) else type(thing).__name__
        raise Refused(f"a network of class {found}, expected {class_name}")
    if type(thing.state) is not dict:
        raise Refused(f"a {class_name} without attributes")
    return thing.state


def constructor_arguments(state: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """Return a constructor's arguments by name, from the recorded positional and keyword arguments."""
    args, kwargs = state.get("_init_args", ()), state.get("_init_kwargs", {})
    if type(args) not in (tuple, list) or type(kwargs) is not dict or len(args) > len(names):
        raise Refused("a network without its constructor's arguments")
    return {**dict(zip(names, args, strict=False)), **kwargs}


def natural(options: dict[str, Any], name: str) -> int:
    """Return a positive integer option. Refused for any other value."""
    value = options[name]
    if type(value) is not int or value < 1:
        raise Refused(f"a SongUNet whose {name} is {ascii(value)[:40]}, expected a positive integer")
    return value


def sequence(options: dict[str, Any], name: str) -> tuple[int, ...]:
    """Return an option that is a list of at most 16 positive integers. Refused for any other value."""
    value = options[name]
    if type(value) not in (list, tuple) or len(value) > 16 or any(type(v) is not int or v < 1 for v in value):
        raise Refused(f"a SongUNet whose {name} is {ascii(value)[:40]}, expected a list of at most 16 positive integers")
    return tuple(value)


def network_config(state: dict[str, Any]) -> NetworkConfig:
    """Return our architecture of a SongUNet's attributes. Refused names the options that it does not have."""
    given = constructor_arguments(state, tuple(SONG_DEFAULTS))
    unknown = sorted(ascii(name) for name in given.keys() - SONG_DEFAULTS.keys())
    if unknown:
        raise Refused(f"a SongUNet with the unknown option {unknown[0][:80]}")
    options = {**SONG_DEFAULTS, **given}
    others = [f"{name} {ascii(options[name])[:40]} (expected {want!r})" for name, want in DDPMPP.items() if options[name] != want]
    if others:
        raise Refused(f"a SongUNet with {', '.join(others)}")
    channels = natural(options, "in_channels")
    if options["out_channels"] != channels:
        raise Refused(f"a SongUNet of {channels} channels in and {ascii(options['out_channels'])[:40]} out")
    if type(options["dropout"]) not in (int, float):
        raise Refused("a SongUNet whose dropout is not a number")
    resolution = natural(options, "img_resolution")
    if resolution > MAX_RESOLUTION:
        raise Refused(f"a SongUNet of img_resolution {resolution}, more than {MAX_RESOLUTION}")
    model_channels, num_blocks = natural(options, "model_channels"), natural(options, "num_blocks")
    channel_mult, attention = sequence(options, "channel_mult"), sequence(options, "attn_resolutions")
    try:
        return NetworkConfig(
            resolution=resolution,
            channels=channels,
            model_channels=model_channels,
            channel_mult=channel_mult,
            num_blocks=num_blocks,
            attn_resolutions=attention,
            dropout=float(options["dropout"]),
            periodic=(False, False),
        )
    except ValueError as error:
        raise Refused(f"an impossible SongUNet; {error}") from None


def named_tensors(state: dict[str, Any], prefix: str = "", seen: set[int] | None = None) -> Iterator[tuple[str, TensorRef]]:
    """Yield the parameters and buffers in a module's attributes, by dotted names as torch has them."""
    seen = set() if seen is None else seen
    if id(state) in seen or len(prefix) > 200:
        raise Refused("a module within itself, or twice in one network")
    seen.add(id(state))
    for group in ("_parameters", "_buffers"):
        for name, tensor in _members(state, group):
            if not isinstance(tensor, TensorRef):
                raise Refused(f"{prefix}{name}, which is not a tensor")
            yield prefix + name, tensor
    for name, module in _members(state, "_modules"):
        if not isinstance(module, Inert) or type(module.state) is not dict:
            raise Refused(f"{prefix}{name}, which is not a module")
        yield from named_tensors(module.state, f"{prefix}{name}.", seen)


def _members(state: dict[str, Any], group: str) -> list[tuple[str, Any]]:
    members = state.get(group, {})
    if type(members) is not dict or not all(type(n) is str and re.fullmatch(r"\w{1,80}", n, re.ASCII) for n in members):
        raise Refused(f"a module whose {group} are not named members")
    return [(name, member) for name, member in members.items() if member is not None]


def describe(network: Any) -> EdmNetwork:
    """Return the description of an EDMPrecond. Refused names the part that our network does not have."""
    state = class_state(network, "EDMPrecond")
    model = dict(_members(state, "_modules")).get("model")
    model_state = class_state(model, "SongUNet")
    config = network_config(model_state)
    given = constructor_arguments(state, PRECOND_ARGUMENTS)
    sigma_data = state.get("sigma_data", given.get("sigma_data", 0.5))
    if type(sigma_data) not in (int, float) or not 0 < sigma_data < math.inf:
        raise Refused(f"an EDMPrecond whose sigma_data is {ascii(sigma_data)[:40]}")
    tensors = dict(named_tensors(model_state))
    for name in [name for name in tensors if name.endswith(".resample_filter")]:
        if not np.array_equal(tensors.pop(name).array(), BOX):
            raise Refused(f"another resampling kernel than the mean of 2x2 points ({name})")
    notes = []
    if tensors.pop(AUGMENT, None) is not None:
        notes.append(f"{AUGMENT} dropped: it acts only on labels of augmented training images")
    if state.get("use_fp16", given.get("use_fp16", False)):
        notes.append("use_fp16 dropped: the network runs in float32")
    if len(config.channel_mult) * config.num_blocks > len(tensors):
        raise Refused(f"{len(tensors)} tensors, too few for {len(config.channel_mult)} levels of {config.num_blocks} blocks")
    return EdmNetwork(config=config, sigma_data=float(sigma_data), tensors=tensors, notes=tuple(notes))


def float32(name: str, tensor: TensorRef) -> torch.Tensor:
    """Return a weight as float32. Refused unless all numbers are finite and floating point."""
    try:
        array = tensor.array()
    except Refused as error:
        raise Refused(f"{error} ({name})") from None
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise Refused(f"weights that are not finite floating-point numbers ({name})")
    return torch.from_numpy(array.astype(np.float32))


def build(network: EdmNetwork, file_bytes: int) -> Denoiser:
    """Return the denoiser. Names, shapes and total size are checked before any tensor of the declared size is made."""
    shapes = {name: ref.shape() for name, ref in network.tensors.items()}
    if sum(map(math.prod, shapes.values())) > file_bytes:
        raise Refused("more weights than bytes: tensors that share their storage")
    with torch.device("meta"):
        outline = Denoiser(network.config, network.sigma_data)
    try:
        outline.load_network({name: torch.empty(shape, device="meta") for name, shape in shapes.items()})
    except ValueError as error:
        raise Refused(f"another network than its options say; {error}") from None
    tensors = {name: float32(name, ref) for name, ref in network.tensors.items()}
    return Denoiser(network.config, network.sigma_data).load_network(tensors).eval()


def load(path: Path, *, key: str = "ema", max_gigabytes: float = 4.0) -> tuple[Denoiser, tuple[str, ...], str]:
    """Return the denoiser of a pickle, notes on left-out parts, and the file's sha256. CheckpointError names the file."""
    value, data = edm_pickle.read(path, max_bytes=int(max_gigabytes * 2**30))
    if type(value) is not dict or key not in value:
        known = ", ".join(sorted(ascii(k[:40])[1:-1] for k in value if type(k) is str)) if type(value) is dict else "no dict"
        raise CheckpointError(f"{path}: no network {key!r} (--key); it holds: {known or 'nothing'}")

    def convert() -> tuple[Denoiser, tuple[str, ...]]:
        network = describe(value[key])
        return build(network, len(data)), network.notes

    denoiser, notes = edm_pickle.guarded(path, convert)
    return denoiser, notes, hashlib.sha256(data).hexdigest()


def edm_state_dict(denoiser: Denoiser) -> dict[str, torch.Tensor]:
    """Return a denoiser's state_dict for EDM's EDMPrecond: names under ``model.``, with the resampling kernels.

    ValueError for a periodic network: EDM's convolutions pad with zeros.
    """
    if any(denoiser.config.periodic):
        raise ValueError(f"EDM's network pads with zeros; this one is periodic {denoiser.config.periodic}")
    tensors = {f"model.{name}": tensor for name, tensor in denoiser.network.state_dict().items()}
    resampling = [n for n, module in denoiser.network.named_modules() if isinstance(module, Conv) and module.resample]
    return tensors | {f"model.{name}.resample_filter": torch.from_numpy(BOX.copy()) for name in resampling}


def check_fits(denoiser: Denoiser, env_id: str, path: Path) -> None:
    """Raise CheckpointError unless the network has the channels and the grid of the PDE."""
    config, pde = denoiser.config, make_pde(env_id, denoiser.config.resolution)
    if pde.shape != (config.channels, config.resolution, config.resolution):
        raise CheckpointError(
            f"{path}: a network of {config.channels} channels at {config.resolution}x{config.resolution}; "
            f"{env_id} has {len(pde.channels)} ({', '.join(pde.channels)}) on {'x'.join(map(str, pde.grid.shape))}"
        )
