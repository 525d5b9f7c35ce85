"""The U-Net: EDM's names, a naive numpy evaluation, shifts, the cut into trunk and head, periodic padding."""

import math

import numpy as np
import pytest
import torch

from pirf_ray.diffusion.checkpoints import fingerprint
from pirf_ray.diffusion.networks import NetworkConfig, PeriodicPad, UNet

TINY = NetworkConfig(resolution=8, model_channels=4, channel_mult=(1, 2), num_blocks=1)


def randomized(module, seed=0, scale=0.3):
    """Fill every parameter with noise: EDM's initialization hides half the network behind weights of 1e-5."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.copy_(scale * torch.randn(p.shape, generator=rng, dtype=torch.float64) + (p.ndim == 1))
    return module


def noise(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- names ---

BLOCK = ("norm0", "conv0", "affine", "norm1", "conv1")
ATTENTION = ("norm2", "qkv", "proj")
# EDM's SongUNet with img_resolution 16, model_channels 4, channel_mult [1, 2], num_blocks 1. A block has a skip convolution
# where it resamples or changes the width (4 -> 8 below; the decoder concatenates), the bottleneck's in0 has attention.
EXPECTED = {
    "map_layer0": (),
    "map_layer1": (),
    "enc.16x16_conv": (),
    "enc.16x16_block0": BLOCK,
    "enc.8x8_down": (*BLOCK, "skip"),
    "enc.8x8_block0": (*BLOCK, "skip"),
    "dec.8x8_in0": (*BLOCK, *ATTENTION),
    "dec.8x8_in1": BLOCK,
    "dec.8x8_block0": (*BLOCK, "skip"),
    "dec.8x8_block1": (*BLOCK, "skip"),
    "dec.16x16_up": (*BLOCK, "skip"),
    "dec.16x16_block0": (*BLOCK, "skip"),
    "dec.16x16_block1": (*BLOCK, "skip"),
    "dec.16x16_aux_norm": (),
    "dec.16x16_aux_conv": (),
}


@pytest.mark.parametrize(("attention", "with_attention"), [((), ()), ((8,), ("enc.8x8_block0", "dec.8x8_block1"))])
def test_parameter_names_are_those_of_edm(attention, with_attention):
    modules = {name: parts + (ATTENTION if name in with_attention else ()) for name, parts in EXPECTED.items()}
    layers = [f"{name}.{part}" if part else name for name, parts in modules.items() for part in (parts or ("",))]
    expected = {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}
    config = NetworkConfig(resolution=16, model_channels=4, channel_mult=(1, 2), num_blocks=1, attn_resolutions=attention)
    assert set(UNet(config).state_dict()) == expected


# --- a naive evaluation, layer by layer ---


class Naive:
    """The network in numpy, with loops over channels and kernel points. x: (c, h, w)."""

    def __init__(self, tensors, periodic):
        self.tensors = {name: t.numpy() for name, t in tensors.items()}
        self.modes = ["wrap" if p else "constant" for p in periodic]

    def linear(self, name, x):
        return self.tensors[f"{name}.weight"] @ x + self.tensors[f"{name}.bias"]

    def conv(self, name, x):
        weight, (_, h, w) = self.tensors[f"{name}.weight"], x.shape
        p = weight.shape[-1] // 2
        padded = np.pad(np.pad(x, ((0, 0), (p, p), (0, 0)), mode=self.modes[0]), ((0, 0), (0, 0), (p, p)), mode=self.modes[1])
        out = np.zeros((len(weight), h, w))
        for o, i, r, c in np.ndindex(weight.shape):
            out[o] += weight[o, i, r, c] * padded[i, r : r + h, c : c + w]
        return out + self.tensors[f"{name}.bias"][:, None, None]

    def norm(self, name, x):
        groups = x.reshape(max(len(x) // 4, 1), -1)
        normal = (groups - groups.mean(1, keepdims=True)) / np.sqrt(groups.var(1, keepdims=True) + 1e-6)
        return (
            normal.reshape(x.shape) * self.tensors[f"{name}.weight"][:, None, None] + self.tensors[f"{name}.bias"][:, None, None]
        )

    @staticmethod
    def silu(x):
        return x / (1 + np.exp(-x))

    @staticmethod
    def resample(x, how):
        if how == "down":
            return (x[:, ::2, ::2] + x[:, 1::2, ::2] + x[:, ::2, 1::2] + x[:, 1::2, 1::2]) / 4
        return x.repeat(2, axis=1).repeat(2, axis=2) if how == "up" else x

    def block(self, name, x, emb):
        how = name.rsplit("_", 1)[1]
        h = self.conv(f"{name}.conv0", self.resample(self.silu(self.norm(f"{name}.norm0", x)), how))
        h = self.silu(self.norm(f"{name}.norm1", h + self.linear(f"{name}.affine", emb)[:, None, None]))
        kept = self.conv(f"{name}.skip", self.resample(x, how)) if f"{name}.skip.weight" in self.tensors else x
        x = (self.conv(f"{name}.conv1", h) + kept) / math.sqrt(2)
        return self.attend(name, x) if f"{name}.qkv.weight" in self.tensors else x

    def attend(self, name, x):
        flat = self.conv(f"{name}.qkv", self.norm(f"{name}.norm2", x)).reshape(3 * len(x), -1)
        q, k, v = flat[0::3], flat[1::3], flat[2::3]
        scores = np.exp(q.T @ k / math.sqrt(len(x)))
        attended = (v @ (scores / scores.sum(1, keepdims=True)).T).reshape(x.shape)
        return (x + self.conv(f"{name}.proj", attended)) / math.sqrt(2)

    def embed(self, c_noise, width):
        angles = [c_noise * 10000 ** (-i / (width // 2 - 1)) for i in range(width // 2)]
        emb = np.array([math.sin(a) for a in angles] + [math.cos(a) for a in angles])
        return self.silu(self.linear("map_layer1", self.silu(self.linear("map_layer0", emb))))

    def forward(self, x, c_noise):
        """Return F(x; c_noise) of TINY's graph. Decoder blocks take the encoder's outputs last in, first out."""
        emb = self.embed(c_noise, 4)
        s0 = self.conv("enc.8x8_conv", x)
        s1 = self.block("enc.8x8_block0", s0, emb)
        s2 = self.block("enc.4x4_down", s1, emb)
        s3 = self.block("enc.4x4_block0", s2, emb)
        h = self.block("dec.4x4_in1", self.block("dec.4x4_in0", s3, emb), emb)
        h = self.block("dec.4x4_block0", np.concatenate([h, s3]), emb)
        h = self.block("dec.4x4_block1", np.concatenate([h, s2]), emb)
        h = self.block("dec.8x8_up", h, emb)
        h = self.block("dec.8x8_block0", np.concatenate([h, s1]), emb)
        h = self.block("dec.8x8_block1", np.concatenate([h, s0]), emb)
        return self.conv("dec.8x8_aux_conv", self.silu(self.norm("dec.8x8_aux_norm", h)))


@pytest.mark.parametrize("periodic", [(False, False), (False, True), (True, False), (True, True)])
@pytest.mark.parametrize("attention", [(), (4, 8)])
def test_network_equals_a_naive_evaluation(periodic, attention):
    config = NetworkConfig(
        resolution=8,
        model_channels=4,
        channel_mult=(1, 2),
        num_blocks=1,
        periodic=periodic,
        attn_resolutions=attention,
        channels=2,
    )
    network = randomized(UNet(config).double())
    x, c_noise = noise(2, 2, 8, 8), torch.tensor([-1.3, 0.4], dtype=torch.float64)
    naive = Naive(network.state_dict(), periodic)
    expected = np.stack([naive.forward(f, c) for f, c in zip(x.numpy(), c_noise.tolist(), strict=True)])
    assert expected.std() > 0.1
    np.testing.assert_allclose(network(x, c_noise).detach().numpy(), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("mult", "shift"), [((1,), 1), ((1,), 3), ((1, 2), 2), ((1, 2, 2), 4)])
def test_network_commutes_with_shifts_along_periodic_axes_only(mult, shift):
    network = randomized(
        UNet(NetworkConfig(resolution=8, model_channels=4, channel_mult=mult, num_blocks=1, periodic=(False, True))).double()
    )
    x, c_noise = noise(1, 1, 8, 8), torch.zeros(1, dtype=torch.float64)
    plain = network(x, c_noise)
    torch.testing.assert_close(network(x.roll(shift, -1), c_noise), plain.roll(shift, -1), rtol=0, atol=1e-11)
    assert (network(x.roll(shift, -2), c_noise) - plain.roll(shift, -2)).abs().max() > 1e-3


@pytest.mark.parametrize("head_levels", [0, 1, 2, 3])
def test_trunk_and_head_make_the_forward_pass_wherever_it_is_cut(head_levels):
    config = NetworkConfig(resolution=8, model_channels=4, channel_mult=(1, 2, 2), num_blocks=2, attn_resolutions=(4,))
    network = randomized(UNet(config).double())
    x, c_noise = noise(2, 1, 8, 8), noise(2, seed=1)
    trunk = network.trunk(x, c_noise, head_levels)
    for _ in range(2):  # the head leaves its inputs as they were
        assert torch.equal(network.head(*trunk, head_levels), network(x, c_noise))


def test_a_fresh_network_is_nearly_zero_and_seeded():
    torch.manual_seed(0)
    first = UNet(TINY)
    torch.manual_seed(0)
    assert fingerprint(first.state_dict()) == fingerprint(UNet(TINY).state_dict())
    assert first(torch.randn(2, 1, 8, 8), torch.zeros(2)).abs().max() < 1e-3


BAD_CONFIGS = [
    ({"channel_mult": ()}, "at least one level"),
    ({"resolution": 10, "channel_mult": (1, 2, 2)}, "resolution 10 cannot be halved 2 times"),
    ({"model_channels": 6}, "multiple of 4, got 6"),
    ({"num_blocks": 0}, "got 0 and 1"),
    ({"channels": 0}, "got 2 and 0"),
    ({"dropout": 1.0}, "got 1.0"),
]


@pytest.mark.parametrize(("fields", "message"), BAD_CONFIGS)
def test_impossible_architectures_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        NetworkConfig(**fields)


@pytest.mark.parametrize("periodic", [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_periodic_padding_is_concatenation_and_its_gradient(periodic, memory):
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64).to(memory_format=memory).requires_grad_()
    expected = torch.cat([x[..., -1:], x, x[..., :1]], dim=-1) if periodic[1] else x
    expected = torch.cat([expected[..., -1:, :], expected, expected[..., :1, :]], dim=-2) if periodic[0] else expected
    padded = PeriodicPad.apply(x, 1, periodic)
    assert torch.equal(padded, expected)
    assert padded.is_contiguous(memory_format=memory)
    assert torch.autograd.gradcheck(lambda y: PeriodicPad.apply(y, 1, periodic), (x,))
