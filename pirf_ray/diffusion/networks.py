"""The DDPM++ U-Net (Song et al. 2021, arXiv 2011.13456) as EDM configures it (Karras et al. 2022, arXiv 2206.00364).

Parameter names are the names in EDM's published checkpoints, such as ``enc.32x32_conv.weight`` and
``dec.32x32_block0.conv0.weight``. So these checkpoints can be loaded. The forward pass is split at a decoder level into
``trunk`` and ``head``. Layer-wise truncation cuts the gradient there (pirf_ray.learning.parameters.layers).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

SKIP_SCALE = 0.5**0.5


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Architecture of the U-Net."""

    resolution: int = 32
    """Rows and columns of the fields."""
    channels: int = 1
    """Channels of the fields."""
    model_channels: int = 32
    """Width of the highest-resolution level."""
    channel_mult: tuple[int, ...] = (1, 2, 2)
    """Width of each level in units of model_channels, highest resolution first."""
    num_blocks: int = 2
    """Residual blocks per level. The decoder has one more per level."""
    attn_resolutions: tuple[int, ...] = ()
    """Resolutions with self-attention. The first block of the bottleneck always has self-attention."""
    dropout: float = 0.0
    """Dropout rate of pretraining. Fine-tuning, rollouts and evaluation have no dropout."""
    periodic: tuple[bool, bool] = (False, False)
    """Whether convolutions wrap around (rows, columns). False is zero padding, as in EDM's own checkpoints."""

    def __post_init__(self) -> None:
        levels = len(self.channel_mult)
        if levels < 1 or min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult needs at least one level of at least 1, got {self.channel_mult}")
        if self.resolution % 2 ** (levels - 1):
            raise ValueError(
                f"resolution {self.resolution} cannot be halved {levels - 1} times for channel_mult {self.channel_mult}"
            )
        if self.model_channels < 4 or self.model_channels % 4:
            raise ValueError(f"model_channels must be a positive multiple of 4, got {self.model_channels}")
        if self.num_blocks < 1 or self.channels < 1:
            raise ValueError(f"num_blocks and channels must be at least 1, got {self.num_blocks} and {self.channels}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {self.dropout}")

    @property
    def resolutions(self) -> tuple[int, ...]:
        """Return the resolution of each level, highest first."""
        return tuple(self.resolution >> level for level in range(len(self.channel_mult)))


def _initialize(weight: torch.Tensor, fan_in: int, fan_out: int, scale: float) -> None:
    bound = scale * math.sqrt(6 / (fan_in + fan_out))
    nn.init.uniform_(weight, -bound, bound)


class Linear(nn.Linear):
    """Linear layer with Xavier-uniform weights and zero bias at the start."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features)
        _initialize(self.weight, in_features, out_features, 1.0)
        nn.init.zeros_(self.bias)


class PeriodicPad(torch.autograd.Function):
    """Periodic padding of fields (b, c, h, w) by p rows, p columns or both.

    It makes one copy, where concatenation makes two, and keeps a channels-last layout.
    """

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, p: int, periodic: tuple[bool, bool]) -> torch.Tensor:
        """Return the padded fields (b, c, h + 2p, w + 2p); an axis that is not periodic keeps its size."""
        ctx.p, ctx.periodic = p, periodic
        rows, columns = (p if wrapped else 0 for wrapped in periodic)
        b, c, h, w = x.shape
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()  # one channel has both layouts
        memory = torch.channels_last if last else torch.contiguous_format
        out = torch.empty((b, c, h + 2 * rows, w + 2 * columns), dtype=x.dtype, device=x.device, memory_format=memory)
        out[:, :, rows : rows + h, columns : columns + w] = x
        if columns:
            out[..., :p], out[..., -p:] = out[..., w : w + p], out[..., p : 2 * p]
        if rows:
            out[:, :, :p], out[:, :, -p:] = out[:, :, h : h + p], out[:, :, p : 2 * p]
        return out

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient (b, c, h, w), each wrapped row and column added to its origin."""
        p, (rows, columns) = ctx.p, ctx.periodic
        g = gradient.clone()
        if rows:
            g[:, :, -2 * p : -p] += g[:, :, :p]
            g[:, :, p : 2 * p] += g[:, :, -p:]
            g = g[:, :, p:-p]
        if columns:
            g[..., -2 * p : -p] += g[..., :p]
            g[..., p : 2 * p] += g[..., -p:]
            g = g[..., p:-p]
        return g, None, None


class Conv(nn.Module):
    """3x3 or 1x1 convolution, optionally after box up- or down-sampling. Each axis is zero-padded or periodic."""

    def __init__(
        self, cin: int, cout: int, kernel: int, periodic: tuple[bool, bool], *, resample: str | None = None, scale: float = 1.0
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(cout, cin, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(cout))
        _initialize(self.weight, cin * kernel**2, cout * kernel**2, scale)
        self.padding = kernel // 2
        self.periodic = periodic
        self.resample = resample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the fields (b, cout, h', w') of x (b, cin, h, w)."""
        if self.resample == "down":
            x = F.avg_pool2d(x, 2)
        elif self.resample == "up":
            x = F.interpolate(x, scale_factor=2, mode="nearest")
        p, (rows, columns) = self.padding, self.periodic
        if p and (rows or columns):
            x = PeriodicPad.apply(x, p, self.periodic)  # type: ignore[no-untyped-call]
        return F.conv2d(x, self.weight, self.bias, padding=(0 if rows else p, 0 if columns else p))


class GroupNorm(nn.GroupNorm):
    """Group normalization whose weights can learn on a frozen input.

    For a channels-last input that needs no gradient, torch's CPU backward pass (2.13) writes through a null pointer. So the
    gradient of the input is always asked for.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the normalized x (b, c, h, w)."""
        learning = self.weight.requires_grad or self.bias.requires_grad
        if learning and torch.is_grad_enabled() and not x.requires_grad:
            x = x.detach().requires_grad_(True)
        return super().forward(x)


def group_norm(channels: int) -> GroupNorm:
    """Return EDM's group normalization, with gcd(min(32, channels // 4), channels) groups."""
    return GroupNorm(math.gcd(min(32, channels // 4), channels), channels, eps=1e-6)


class Block(nn.Module):
    """Residual block: norm, SiLU, conv, + embedding, norm, SiLU, dropout, conv, + skip, then optional self-attention."""

    def __init__(
        self, cin: int, cout: int, emb: int, config: NetworkConfig, *, resample: str | None = None, attention: bool = False
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = cin, cout
        periodic = config.periodic
        self.norm0 = group_norm(cin)
        self.conv0 = Conv(cin, cout, 3, periodic, resample=resample)
        self.affine = Linear(emb, cout)
        self.norm1 = group_norm(cout)
        self.dropout = nn.Dropout(config.dropout)
        self.conv1 = Conv(cout, cout, 3, periodic, scale=1e-5)
        self.skip = Conv(cin, cout, 1, periodic, resample=resample) if cin != cout or resample else None
        self.attention = attention
        if attention:
            self.norm2 = group_norm(cout)
            self.qkv = Conv(cout, 3 * cout, 1, periodic, scale=0.2**0.5)
            self.proj = Conv(cout, cout, 1, periodic, scale=1e-5)

    def forward(self, x: torch.Tensor, emb: torch.Tensor) -> torch.Tensor:
        """Return the features (b, cout, h', w') of x (b, cin, h, w) and the embedding (b, e)."""
        h = self.conv0(F.silu(self.norm0(x)))
        h = h + self.affine(emb)[:, :, None, None]
        h = self.conv1(self.dropout(F.silu(self.norm1(h))))
        x = (h + (x if self.skip is None else self.skip(x))) * SKIP_SCALE
        return self._attend(x) if self.attention else x

    def _attend(self, x: torch.Tensor) -> torch.Tensor:
        b, c, height, width = x.shape
        # EDM interleaves q, k and v: output channel 3 i of qkv is channel i of q, 3 i + 1 of k, 3 i + 2 of v.
        q, k, v = self.qkv(self.norm2(x)).reshape(b, c, 3, height * width).unbind(2)
        weights = torch.softmax(torch.einsum("bci,bcj->bij", q, k) / math.sqrt(c), dim=-1)
        attended = torch.einsum("bij,bcj->bci", weights, v).reshape(b, c, height, width)
        projected: torch.Tensor = self.proj(attended)
        return (x + projected) * SKIP_SCALE


class UNet(nn.Module):
    """Network F(x; c_noise): (b, c, n, n), (b,) -> (b, c, n, n)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        width, emb = config.model_channels, 4 * config.model_channels
        self.map_layer0 = Linear(width, emb)
        self.map_layer1 = Linear(emb, emb)
        self.enc = nn.ModuleDict()
        self.dec = nn.ModuleDict()
        skips = self._build_encoder(emb)
        self._build_decoder(emb, skips)

    def _build_encoder(self, emb: int) -> list[int]:
        config = self.config
        channels = config.model_channels
        skips = []
        for level, (resolution, mult) in enumerate(zip(config.resolutions, config.channel_mult, strict=True)):
            name = f"{resolution}x{resolution}"
            if level == 0:
                self.enc[f"{name}_conv"] = Conv(config.channels, channels, 3, config.periodic)
            else:
                self.enc[f"{name}_down"] = Block(channels, channels, emb, config, resample="down")
            skips.append(channels)
            for index in range(config.num_blocks):
                out = config.model_channels * mult
                attention = resolution in config.attn_resolutions
                self.enc[f"{name}_block{index}"] = Block(channels, out, emb, config, attention=attention)
                channels = out
                skips.append(channels)
        return skips

    def _build_decoder(self, emb: int, skips: list[int]) -> None:
        config = self.config
        channels = skips[-1]
        for level in reversed(range(len(config.channel_mult))):
            resolution = config.resolutions[level]
            name = f"{resolution}x{resolution}"
            if level == len(config.channel_mult) - 1:
                self.dec[f"{name}_in0"] = Block(channels, channels, emb, config, attention=True)
                self.dec[f"{name}_in1"] = Block(channels, channels, emb, config)
            else:
                self.dec[f"{name}_up"] = Block(channels, channels, emb, config, resample="up")
            for index in range(config.num_blocks + 1):
                out = config.model_channels * config.channel_mult[level]
                attention = index == config.num_blocks and resolution in config.attn_resolutions
                self.dec[f"{name}_block{index}"] = Block(channels + skips.pop(), out, emb, config, attention=attention)
                channels = out
        name = f"{config.resolution}x{config.resolution}"
        self.dec[f"{name}_aux_norm"] = group_norm(channels)
        self.dec[f"{name}_aux_conv"] = Conv(channels, config.channels, 3, config.periodic, scale=1e-5)

    def embed(self, c_noise: torch.Tensor) -> torch.Tensor:
        """Return the embedding (b, 4 model_channels) of c_noise (b,): sines, then cosines, through two SiLU layers."""
        half = self.config.model_channels // 2
        exponent = torch.arange(half, dtype=c_noise.dtype, device=c_noise.device) / (half - 1)
        angle = c_noise[:, None] * (1 / 10000) ** exponent
        emb = torch.cat([angle.sin(), angle.cos()], dim=1)
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def _decoder_blocks(self, levels: range) -> Iterator[Block]:
        """Yield the decoder blocks of the given levels, in the order of the forward pass."""
        for level in reversed(levels):
            prefix = f"{self.config.resolutions[level]}x{self.config.resolutions[level]}_"
            yield from (b for name, b in self.dec.items() if name.startswith(prefix) and isinstance(b, Block))

    def _run_decoder(self, levels: range, x: torch.Tensor, skips: list[torch.Tensor], emb: torch.Tensor) -> torch.Tensor:
        for block in self._decoder_blocks(levels):
            if x.shape[1] != block.in_channels:
                x = torch.cat([x, skips.pop()], dim=1)
            x = block(x, emb)
        return x

    def trunk(
        self, x: torch.Tensor, c_noise: torch.Tensor, head_levels: int
    ) -> tuple[torch.Tensor, list[torch.Tensor], torch.Tensor]:
        """Return (features, skips, embedding) at the inputs of the top ``head_levels`` decoder levels."""
        emb = self.embed(c_noise)
        skips: list[torch.Tensor] = []
        for module in self.enc.values():
            x = module(x, emb) if isinstance(module, Block) else module(x)
            skips.append(x)
        x = self._run_decoder(range(head_levels, len(self.config.channel_mult)), x, skips, emb)
        return x, skips, emb

    def head(self, x: torch.Tensor, skips: list[torch.Tensor], emb: torch.Tensor, head_levels: int) -> torch.Tensor:
        """Return the output (b, c, n, n) of the top ``head_levels`` decoder levels and the output layer."""
        x = self._run_decoder(range(head_levels), x, list(skips), emb)
        name = f"{self.config.resolution}x{self.config.resolution}_aux"
        out: torch.Tensor = self.dec[f"{name}_conv"](F.silu(self.dec[f"{name}_norm"](x)))
        return out

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        """Return F(x; c_noise)."""
        return self.head(*self.trunk(x, c_noise, 1), 1)
