"""A stand-in for EDM's network, written from its description: the same modules, names and pickle layout, other code.

Resampling is done as EDM does it, by depthwise convolutions with the kernel kept as a buffer.
"""

import contextlib
import math
import pickle
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pirf_ray.diffusion.checkpoints import CheckpointError

MEGABYTE = 2**20
PERSISTENCE, UTIL = "torch_utils.persistence", "dnnlib.util"


class EasyDict(dict):
    pass


def _reconstruct_persistent_obj(meta):
    raise AssertionError("the file's code ran")


EasyDict.__module__, EasyDict.__qualname__ = UTIL, "EasyDict"
_reconstruct_persistent_obj.__module__ = PERSISTENCE


@contextlib.contextmanager
def edm_modules() -> Iterator[None]:
    """The modules that EDM's pickles name exist only inside."""
    modules = {name: ModuleType(name) for name in ("torch_utils", PERSISTENCE, "dnnlib", UTIL)}
    modules[PERSISTENCE]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    modules[UTIL].EasyDict = EasyDict
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


def dump(value: object, protocol: int | None = None) -> bytes:
    with edm_modules():
        return pickle.dumps(value, protocol)


class Raw:
    """Pickles as a call of the given function with the given arguments."""

    def __init__(self, function, *args):
        self.reduced = (function, args)

    def __reduce__(self):
        return self.reduced


class Loss:
    """Pickled as EDMLoss is, a persistent class that is no module."""

    def __reduce__(self):
        state = {"P_mean": -1.2, "P_std": 1.2, "sigma_data": 0.5, "_init_args": (), "_init_kwargs": {}}
        return _reconstruct_persistent_obj, ({"type": "class", "version": 6, "class_name": "EDMLoss", "state": state},)


class Persistent(nn.Module):
    """Pickled as EDM's persistent classes are: a call with a dict of class name, source text and state."""

    class_name: str | None = None

    def __init__(self, *args, **kwargs):
        super().__init__()
        self._init_args, self._init_kwargs = args, kwargs

    def __reduce__(self):
        name = self.class_name or type(self).__name__
        source = "raise SystemExit('the file ran its source')"
        state = dict(self.__dict__)
        meta = EasyDict(type="class", version=6, module_src=source, class_name=name, state=state)
        return _reconstruct_persistent_obj, (meta,)


class Linear(Persistent):
    def __init__(self, cin, cout, bias=True):
        super().__init__(in_features=cin, out_features=cout, init_weight=np.sqrt(0.2))
        self.weight = nn.Parameter(torch.zeros(cout, cin))
        self.bias = nn.Parameter(torch.zeros(cout)) if bias else None

    def forward(self, x):
        return x @ self.weight.T + self.bias


class Conv2d(Persistent):
    def __init__(self, cin, cout, kernel, up=False, down=False):
        super().__init__(in_channels=cin, out_channels=cout, kernel=kernel, up=up, down=down, resample_filter=[1, 1])
        self.up, self.down = up, down
        self.weight = nn.Parameter(torch.zeros(cout, cin, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(cout))
        f = torch.ones(2)
        self.register_buffer("resample_filter", (f.outer(f) / f.sum() ** 2)[None, None] if up or down else None)

    def forward(self, x):
        c = x.shape[1]
        if self.up:
            x = F.conv_transpose2d(x, (4 * self.resample_filter).tile(c, 1, 1, 1), groups=c, stride=2)
        if self.down:
            x = F.conv2d(x, self.resample_filter.tile(c, 1, 1, 1), groups=c, stride=2)
        return F.conv2d(x, self.weight, padding=self.weight.shape[-1] // 2) + self.bias[:, None, None]


class GroupNorm(Persistent):
    def __init__(self, channels):
        super().__init__(num_channels=channels, eps=1e-6)
        self.num_groups = min(32, channels // 4)
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        groups = x.reshape(len(x), self.num_groups, -1)
        variance, mean = torch.var_mean(groups, dim=2, correction=0, keepdim=True)
        normal = ((groups - mean) / (variance + 1e-6).sqrt()).reshape(x.shape)
        return normal * self.weight[:, None, None] + self.bias[:, None, None]


class UNetBlock(Persistent):
    def __init__(self, cin, cout, emb, attention=False, up=False, down=False):
        super().__init__(in_channels=cin, out_channels=cout, emb_channels=emb, attention=attention, skip_scale=np.sqrt(0.5))
        self.in_channels = cin
        self.norm0, self.conv0 = GroupNorm(cin), Conv2d(cin, cout, 3, up, down)
        self.affine, self.norm1, self.conv1 = Linear(emb, cout), GroupNorm(cout), Conv2d(cout, cout, 3)
        self.skip = Conv2d(cin, cout, 1, up, down) if cin != cout or up or down else None
        self.num_heads = int(attention)
        if attention:
            self.norm2, self.qkv, self.proj = GroupNorm(cout), Conv2d(cout, 3 * cout, 1), Conv2d(cout, cout, 1)

    def forward(self, x, emb):
        h = self.conv0(F.silu(self.norm0(x))) + self.affine(emb)[:, :, None, None]
        h = self.conv1(F.silu(self.norm1(h)))
        h = (h + (x if self.skip is None else self.skip(x))) * math.sqrt(0.5)
        return self._attend(h) if self.num_heads else h

    def _attend(self, x):
        b, c, *grid = x.shape
        q, k, v = self.qkv(self.norm2(x)).reshape(b, c, 3, -1).unbind(2)
        weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(c), dim=2)
        return (x + self.proj((v @ weights.transpose(1, 2)).reshape(b, c, *grid))) * math.sqrt(0.5)


class PositionalEmbedding(Persistent):
    def __init__(self, width):
        super().__init__(num_channels=width, endpoint=True)
        self.width = width

    def forward(self, c):
        half = self.width // 2
        frequencies = torch.tensor([10000 ** (-i / (half - 1)) for i in range(half)], dtype=c.dtype)
        angle = c.outer(frequencies)
        return torch.cat([angle.cos(), angle.sin()], 1)


class SongUNet(Persistent):
    def __init__(self, **options):
        super().__init__(**options)
        n, c, mult = options["img_resolution"], options["model_channels"], options["channel_mult"]
        blocks, attended, emb = options["num_blocks"], options["attn_resolutions"], 4 * options["model_channels"]
        self.map_noise, self.map_label = PositionalEmbedding(c), None
        self.map_augment = Linear(options["augment_dim"], c, bias=False) if options.get("augment_dim") else None
        self.map_layer0, self.map_layer1 = Linear(c, emb), Linear(emb, emb)
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        self.enc[f"{n}x{n}_conv"] = Conv2d(options["in_channels"], c, 3)
        widths = [c]
        for level, m in enumerate(mult):
            name = f"{n >> level}x{n >> level}"
            if level:
                self.enc[f"{name}_down"] = UNetBlock(widths[-1], widths[-1], emb, down=True)
                widths.append(widths[-1])
            for i in range(blocks):
                self.enc[f"{name}_block{i}"] = UNetBlock(widths[-1], c * m, emb, attention=n >> level in attended)
                widths.append(c * m)
        width = widths[-1]
        for level, m in reversed(list(enumerate(mult))):
            name = f"{n >> level}x{n >> level}"
            if level == len(mult) - 1:
                self.dec[f"{name}_in0"] = UNetBlock(width, width, emb, attention=True)
                self.dec[f"{name}_in1"] = UNetBlock(width, width, emb)
            else:
                self.dec[f"{name}_up"] = UNetBlock(width, width, emb, up=True)
            for i in range(blocks + 1):
                attention = i == blocks and n >> level in attended
                self.dec[f"{name}_block{i}"] = UNetBlock(width + widths.pop(), c * m, emb, attention=attention)
                width = c * m
        self.dec[f"{n}x{n}_aux_norm"] = GroupNorm(width)
        self.dec[f"{n}x{n}_aux_conv"] = Conv2d(width, options["out_channels"], 3)

    def forward(self, x, c_noise):
        emb = self.map_noise(c_noise)
        emb = emb.reshape(len(emb), 2, -1).flip(1).flatten(1)
        emb = F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))
        first, *encoder = self.enc.values()
        *decoder, norm, conv = self.dec.values()
        outputs = [first(x)]
        for block in encoder:
            outputs.append(block(outputs[-1], emb))
        x = outputs[-1]
        for block in decoder:
            x = block(torch.cat([x, outputs.pop()], 1) if x.shape[1] != block.in_channels else x, emb)
        return conv(F.silu(norm(x)))


class EDMPrecond(Persistent):
    def __init__(self, n, channels, *, use_fp16=False, sigma_data=0.5, **options):
        super().__init__(n, channels, use_fp16=use_fp16, sigma_data=sigma_data, model_type="SongUNet", **options)
        self.img_resolution, self.img_channels, self.label_dim = n, channels, 0
        self.use_fp16, self.sigma_min, self.sigma_max, self.sigma_data = use_fp16, 0, float("inf"), sigma_data
        self.model = SongUNet(img_resolution=n, in_channels=channels, out_channels=channels, label_dim=0, **options)

    def forward(self, x, sigma):
        s, sd = sigma[:, None, None, None], self.sigma_data
        f = self.model(x / (s**2 + sd**2).sqrt(), (sigma.log() / 4))
        return sd**2 / (s**2 + sd**2) * x + s * sd / (s**2 + sd**2).sqrt() * f


TINY = {"model_channels": 8, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4], "dropout": 0.1}


def tiny_edm(n: int = 8, channels: int = 1, **options: object) -> EDMPrecond:
    """Every weight random: a fresh network of EDM hides half of itself behind weights of 1e-5."""
    network = EDMPrecond(n, channels, **{**TINY, **options}).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in network.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1))
    return network


def snapshot(network: object, protocol: int | None = None) -> bytes:
    """A network-snapshot file: the network among what else EDM stores."""
    options = EasyDict(path="data.zip", resolution=8)
    return dump({"ema": network, "loss_fn": Loss(), "augment_pipe": None, "dataset_kwargs": options}, protocol)


def peak(action: Callable[[], object]) -> int:
    """Bytes that Python and numpy allocated at once while the file was refused."""
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=r"hostile\.pkl: "):
            action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
