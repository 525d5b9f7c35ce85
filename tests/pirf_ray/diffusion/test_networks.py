"""The U-Net against EDM's naming and a naive numpy evaluation; preconditioning, loss, EMA."""

import math

import numpy as np
import pytest
import torch

from pirf_ray.diffusion.checkpoints import fingerprint
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.ema import Ema
from pirf_ray.diffusion.losses.denoising import denoising_loss
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
    """The same network in numpy: x (c, h, w), loops over output channels and kernel points, rows zero-padded or periodic."""

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
        """TINY's graph, written out; decoder blocks take the encoder's outputs last in, first out."""
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


def test_truncation_keeps_the_value_and_cuts_the_gradient_below_the_head():
    denoiser = randomized(Denoiser(TINY, 0.5).double())
    x = noise(2, 1, 8, 8)
    whole = denoiser(x, 0.3)
    denoiser.truncate_levels = 1
    cut = denoiser(x, 0.3)
    torch.testing.assert_close(cut, whole, rtol=0, atol=0)
    cut.square().sum().backward()
    learned = {name for name, p in denoiser.network.named_parameters() if p.grad is not None}
    assert learned == {name for name, _ in denoiser.network.named_parameters() if name.startswith("dec.8x8_")}


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


# --- denoiser and loss ---


class Recorder(torch.nn.Module):
    """F = 1 everywhere; keeps its inputs."""

    def forward(self, x, c_noise):
        self.seen = (x, c_noise)
        return torch.ones_like(x)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_preconditioning_follows_the_formulas(sigma):
    sd, x = 0.15, noise(2, 1, 8, 8)
    denoiser = Denoiser(TINY, sd)
    denoiser.network = Recorder()
    # D = sd^2/(s^2+sd^2) x + s sd/sqrt(s^2+sd^2) * 1
    expected = x * sd**2 / (sigma**2 + sd**2) + sigma * sd / math.hypot(sigma, sd)
    torch.testing.assert_close(denoiser(x, torch.full((2,), sigma, dtype=torch.float64)), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(denoiser(x, sigma), expected, rtol=1e-12, atol=0)
    scaled, c_noise = denoiser.network.seen
    torch.testing.assert_close(scaled, x / math.hypot(sigma, sd), rtol=1e-12, atol=0)
    torch.testing.assert_close(c_noise, torch.full((2,), math.log(sigma) / 4, dtype=torch.float64))


def test_denoiser_is_the_identity_without_noise_and_forgets_its_input_in_noise():
    denoiser, x = randomized(Denoiser(TINY, 0.15).double()), noise(2, 1, 8, 8)
    torch.testing.assert_close(denoiser(x, 1e-9), x, rtol=0, atol=1e-7)
    # c_skip -> 0, c_out -> sd: at sigma 1e9, x/sigma vanishes and every x gives the same output
    torch.testing.assert_close(denoiser(x, 1e9), denoiser(-x, 1e9), rtol=0, atol=1e-7)


def test_each_sample_has_its_own_sigma():
    denoiser, x = randomized(Denoiser(TINY, 0.15).double()), noise(2, 1, 8, 8)
    both = denoiser(x, torch.tensor([0.1, 3.0]))
    torch.testing.assert_close(both, torch.cat([denoiser(x[:1], 0.1), denoiser(x[1:], 3.0)]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 1, 16, 16), (2, 1, 8, 4), (1, 8, 8)])
def test_denoiser_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match=r"expected x \(b, 1, 8, 8\)"):
        Denoiser(TINY, 0.5)(torch.zeros(shape), 1.0)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.nan])
def test_denoiser_refuses_an_impossible_sigma_data(sigma_data):
    with pytest.raises(ValueError, match="sigma_data must be positive"):
        Denoiser(TINY, sigma_data)


def test_loading_tensors_that_do_not_fit_names_them():
    tensors = Denoiser(TINY, 0.5).network.state_dict()
    tensors["extra"] = tensors.pop("map_layer0.bias")
    tensors["map_layer1.bias"] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"missing: map_layer0\.bias; unknown: extra; wrong shape: map_layer1\.bias \(3,\) instead of \(16,\)"
    ):
        Denoiser(TINY, 0.5).load_network(tensors)


@pytest.mark.parametrize("sigma", [0.01, 0.3, 20.0])
def test_ideal_gaussian_denoiser_has_loss_one_at_every_sigma(sigma):
    # data N(0, sd^2): the ideal D is c_skip x (F = 0), its error s^2 sd^2/(s^2+sd^2) is 1/lambda
    sd, count = 0.2, 500
    denoiser = Denoiser(TINY, sd).double()
    torch.nn.init.zeros_(denoiser.network.dec["8x8_aux_conv"].weight)
    y = sd * noise(count, 1, 8, 8)
    loss = denoising_loss(denoiser, y, torch.full((count,), sigma, dtype=torch.float64), noise(count, 1, 8, 8, seed=1))
    assert loss.item() == pytest.approx(1, abs=5 * math.sqrt(2 / (count * 64)))


def test_loss_weighs_a_constant_error_by_lambda():
    # y = 0, no noise, F = 1: D = s sd/sqrt(s^2+sd^2), so lambda D^2 = 1
    denoiser = Denoiser(TINY, 0.2)
    denoiser.network = Recorder()
    zero = torch.zeros(3, 1, 8, 8)
    assert denoising_loss(denoiser, zero, torch.tensor([0.01, 1.0, 30.0]), zero).item() == pytest.approx(1, rel=1e-5)


def test_ema_warms_up_then_keeps_its_decay():
    value = torch.zeros(1, dtype=torch.float64)
    slow, fast = Ema({"a": value}, 0.999), Ema({"a": value}, 0.05)
    value.fill_(1.0)
    assert slow.tensors["a"].item() == 0  # a copy, not the tensor itself
    seen = []
    for _ in range(2):
        slow.update({"a": value})
        fast.update({"a": value})
        seen.append((slow.tensors["a"].item(), fast.tensors["a"].item()))
    # slow: d = 1/10, then 2/11: 0 -> .9 -> (2 * .9 + 9)/11; fast: d = .05 both times: 0 -> .95 -> .9975
    assert seen[0] == pytest.approx((0.9, 0.95)) and seen[1] == pytest.approx((10.8 / 11, 0.9975))
    slow.load({"a": torch.full((1,), 3.0)}, updates=10**6)
    slow.update({"a": value})
    assert slow.tensors["a"].item() == pytest.approx(0.999 * 3 + 0.001)


def test_ema_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="got 1.0"):
        Ema({}, 1.0)
    with pytest.raises(ValueError, match="do not fit"):
        Ema({"a": torch.zeros(1)}, 0.9).load({"b": torch.zeros(1)}, 0)


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
