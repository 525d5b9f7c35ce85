"""Import of EDM's pickles: the same function layer by layer, named refusals, and the command."""

import hashlib
import math
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from edm_network import EDMPrecond, Linear, Raw, dump, snapshot, tiny_edm
from pirf_ray import import_edm
from pirf_ray.cli import errors
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.foreign import edm
from pirf_ray.diffusion.networks import NetworkConfig
from pirf_ray.training.checks import check
from pirf_ray.training.models import load_model
from tiny_models import tiny_config


@pytest.fixture
def write(tmp_path: Path):
    """Write bytes, or a network as EDM does, to network-snapshot.pkl."""

    def write_file(content: bytes | EDMPrecond) -> Path:
        path = tmp_path / "network-snapshot.pkl"
        path.write_bytes(content if isinstance(content, bytes) else snapshot(content))
        return path

    return write_file


def imported(path: Path) -> Denoiser:
    return edm.load(path)[0]


def noise(*shape, seed=0):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# --- the same function ---

SIGMA = torch.tensor([0.002, 0.3, 40.0], dtype=torch.float64)
ARCHITECTURES = [
    {},
    {"channels": 2, "sigma_data": 0.37},
    {"n": 16, "channel_mult": [1, 2, 2], "num_blocks": 2, "attn_resolutions": [8, 4]},
    {"model_channels": 16, "channel_mult": [2], "attn_resolutions": []},
    {"augment_dim": 9},
]


@pytest.mark.parametrize("options", ARCHITECTURES)
@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_an_imported_network_is_the_same_function(write, options, protocol):
    network = tiny_edm(**options)
    denoiser = imported(write(snapshot(network, protocol)))
    assert denoiser.sigma_data == network.sigma_data and not denoiser.training
    x = noise(3, network.img_channels, network.img_resolution, network.img_resolution)
    expected = network.double()(x, SIGMA)
    change = expected - network.sigma_data**2 / (SIGMA**2 + network.sigma_data**2)[:, None, None, None] * x
    assert change[1:].std() > 0.01  # the network has a part in it
    torch.testing.assert_close(denoiser.double()(x, SIGMA), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("options", ARCHITECTURES[:4])
def test_an_exported_state_loads_into_edm_and_is_the_same_function(write, options):
    original = tiny_edm(**options)
    denoiser = imported(write(original))
    exported = edm.edm_state_dict(denoiser)
    assert exported.keys() == original.state_dict().keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in original.state_dict().items())
    fresh = EDMPrecond(*original._init_args, **{k: v for k, v in original._init_kwargs.items() if k != "model_type"})
    fresh.load_state_dict(exported, strict=True)
    x = noise(3, fresh.img_channels, fresh.img_resolution, fresh.img_resolution)
    torch.testing.assert_close(fresh.double()(x, SIGMA), denoiser.double()(x, SIGMA), rtol=0, atol=1e-11)


def test_a_periodic_network_is_not_exported():
    denoiser = Denoiser(NetworkConfig(resolution=8, model_channels=8, channel_mult=(1,), periodic=(False, True)), 0.5)
    with pytest.raises(ValueError, match="EDM's network pads with zeros; this one is periodic"):
        edm.edm_state_dict(denoiser)


@pytest.fixture(params=["edm", "imported"])
def layers(request, write):
    """Return the stand-in's network and the imported network, float64. Each layer must give the value computed by hand."""
    network = tiny_edm(model_channels=4, channel_mult=[1, 1])
    return network.model.double() if request.param == "edm" else imported(write(network)).network.double()


def fill(layer, weight, bias=0.0):
    with torch.no_grad():
        layer.weight.copy_(weight)
        layer.bias.fill_(bias)


def pick_first(layer):
    """Make a convolution return its input's channel 0, in every output channel, plus 1."""
    kernel = torch.zeros_like(layer.weight)
    kernel[:, 0, kernel.shape[2] // 2, kernel.shape[3] // 2] = 1
    fill(layer, kernel, 1.0)


def field(*rows):
    """Return a field (1, 4, h, w) with the rows in channel 0 and zeros elsewhere."""
    x = torch.zeros(1, 4, len(rows), len(rows[0]), dtype=torch.float64)
    x[0, 0] = torch.tensor(rows)
    return x


@pytest.mark.parametrize("layer", ["conv0", "skip"])
def test_downsampling_takes_the_mean_of_two_by_two(layers, layer):
    conv = layers.get_submodule(f"enc.4x4_down.{layer}")
    pick_first(conv)
    rows = [[4.0 * i + j for j in range(4)] for i in range(4)]
    # (0 + 1 + 4 + 5)/4 = 2.5, two columns on 4.5, two rows on 10.5; plus the bias 1
    assert conv(field(*rows))[0, 3].tolist() == [[3.5, 5.5], [11.5, 13.5]]


@pytest.mark.parametrize("layer", ["conv0", "skip"])
def test_upsampling_repeats(layers, layer):
    conv = layers.get_submodule(f"dec.8x8_up.{layer}")
    pick_first(conv)
    assert conv(field([1.0, 2.0], [3.0, 4.0]))[0, 2].tolist() == [[2, 2, 3, 3], [2, 2, 3, 3], [4, 4, 5, 5], [4, 4, 5, 5]]


def test_a_convolution_is_padded_with_zeros_and_not_flipped(layers):
    conv = layers.get_submodule("enc.8x8_block0.conv1")
    kernel = torch.zeros_like(conv.weight)
    kernel[0, 0, 1, 2] = 1.0  # out[i, j] = in[i, j + 1]
    fill(conv, kernel)
    assert conv(field([1.0, 2.0], [3.0, 4.0]))[0, 0].tolist() == [[2, 0], [4, 0]]


def test_a_group_of_four_channels_is_normalized_with_epsilon_1e_6(layers):
    norm = layers.get_submodule("enc.8x8_block0.norm0")
    fill(norm, torch.tensor([1.0, 2.0, 3.0, 4.0]), 0.5)
    x = 1e-3 * torch.tensor([3.0, 5.0, 3.0, 5.0], dtype=torch.float64).reshape(1, 4, 1, 1)
    # one group, mean 4e-3, variance 1e-6, so (x - mean)/sqrt(1e-6 + 1e-6) = -+1/sqrt(2)
    r = math.sqrt(0.5)
    assert norm(x).flatten().tolist() == pytest.approx([0.5 - r, 0.5 + 2 * r, 0.5 - 3 * r, 0.5 + 4 * r])


def test_attention_of_two_points(layers):
    block = layers.get_submodule("dec.4x4_in0")
    fill(block.norm2, torch.ones(4))
    fill(block.proj, torch.eye(4)[:, :, None, None])
    weight = torch.zeros_like(block.qkv.weight)
    weight[0, 0], weight[1, 0], weight[2, 0] = math.log(3), 1.0, 1.0  # q, k, v of channel 0 are rows 0, 1, 2
    fill(block.qkv, weight)
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64).reshape(1, 4, 1, 2)
    # normal already; q.k/sqrt(4) = +-ln(3)/2, weights 3/4 and 1/4, attended +-1/2; then (x + attended)/sqrt(2)
    expected = x.clone()
    expected[0, 0, 0] = torch.tensor([1.5, -1.5])
    torch.testing.assert_close(block._attend(x), expected * math.sqrt(0.5), rtol=0, atol=2e-6)


def test_the_embedding_has_the_sine_first(layers):
    seen = []
    layers.map_layer0.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    layers(noise(1, 1, 8, 8), torch.tensor([2.0], dtype=torch.float64))
    # width 4: frequencies 1 and 1/10000
    assert seen[0].flatten().tolist() == pytest.approx([math.sin(2), math.sin(2e-4), math.cos(2), math.cos(2e-4)], abs=1e-12)


def test_a_block_adds_the_embedding_and_scales_the_sum(layers):
    block = layers.get_submodule("enc.8x8_block0")
    for conv in (block.conv0, block.conv1):
        pick_first(conv)
    fill(block.norm0, torch.zeros(4), 1.0)
    fill(block.norm1, torch.zeros(4), 2.0)
    fill(block.affine, torch.zeros_like(block.affine.weight), 7.0)
    x = field([5.0, 6.0])
    silu = 2 / (1 + math.exp(-2))  # norm1 forgets its input: conv1 gets SiLU(2) everywhere and adds 1
    expected = [[(silu + 1 + v) * math.sqrt(0.5) for v in (5.0, 6.0)]]
    emb = torch.zeros(1, block.affine.weight.shape[1], dtype=torch.float64)
    assert block(x, emb)[0, 0].tolist() == [pytest.approx(row) for row in expected]
    fill(block.norm1, torch.tensor([1.0, 1.0, 1.0, 1.0]))
    block.affine.bias.data.copy_(torch.tensor([1.0, -1.0, 1.0, -1.0]))
    # conv0 returns SiLU(1) + 1 everywhere; norm1 takes the mean away and leaves the embedding: +-1; conv1 SiLU(1) + 1
    first = block(x, emb)[0, 0, 0, 0].item()
    assert first == pytest.approx((1 / (1 + math.exp(-1)) + 1 + 5) * math.sqrt(0.5), abs=1e-5)


# --- what is left out or changed ---


def test_half_precision_is_imported_as_float32_with_a_note(write):
    network = tiny_edm(use_fp16=True, augment_dim=9)
    network.half()
    denoiser, notes, _ = edm.load(write(snapshot(network)))
    for name, tensor in denoiser.network.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, network.model.state_dict()[name].float())
    assert [note.split()[0] for note in notes] == ["map_augment.weight", "use_fp16"]


def test_transposed_and_shared_storages_are_read_as_they_are(write):
    network = tiny_edm()
    layer = network.model.map_layer1
    network.model.map_layer1.weight = nn.Parameter(layer.weight.detach().t().contiguous().t(), requires_grad=False)
    flat = torch.arange(2.0 * layer.bias.numel())
    layer.bias.data = flat[layer.bias.numel() :]
    state = imported(write(network)).network.state_dict()
    assert torch.equal(state["map_layer1.weight"], layer.weight) and torch.equal(state["map_layer1.bias"], layer.bias)


def test_reading_neither_imports_the_files_modules_nor_warns(write):
    path = write(tiny_edm())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        imported(path)
    assert not {"torch_utils", "dnnlib"} & sys.modules.keys()


# --- networks that ours is not ---


def option(name, value):
    def change(network):
        network.model._init_kwargs[name] = value

    return change


def named(path, class_name):
    def change(network):
        network.get_submodule(path).class_name = class_name

    return change


def without_tensor(network):
    del network.model.map_layer0.bias


def with_tensor(network):
    network.model.extra = Linear(2, 2)


def with_kernel(network):
    network.model.enc["4x4_down"].conv0.resample_filter = torch.tensor([[[[0.1, 0.4], [0.4, 0.1]]]])


def with_nan(network):
    network.model.map_layer0.weight[3, 2] = math.nan


def with_integers(network):
    del network.model.map_layer0.bias
    network.model.map_layer0.register_buffer("bias", torch.zeros(32, dtype=torch.int64))


def with_itself(network):
    network.model.enc["4x4_down"].conv1 = network.model.enc["4x4_down"].conv0


def set_sigma(value):
    return lambda network: setattr(network, "sigma_data", value)


UNSUPPORTED = {
    "VPPrecond": (named("", "VPPrecond"), "a network of class VPPrecond, expected EDMPrecond"),
    "ADM": (named("model", "DhariwalUNet"), "a network of class DhariwalUNet, expected SongUNet"),
    "fourier": (option("embedding_type", "fourier"), "embedding_type 'fourier' .expected 'positional'."),
    "ncsnpp": (option("encoder_type", "residual"), "encoder_type 'residual' .expected 'standard'."),
    "skip": (option("decoder_type", "skip"), "decoder_type 'skip'"),
    "labels": (option("label_dim", 10), "label_dim 10 .expected 0."),
    "filter": (option("resample_filter", [1, 3, 3, 1]), r"resample_filter \[1, 3, 3, 1\] .expected \[1, 1\]."),
    "kernel": (with_kernel, r"another resampling kernel .* .enc\.4x4_down\.conv0\.resample_filter."),
    "emb": (option("channel_mult_emb", 2), "channel_mult_emb 2 .expected 4."),
    "noise": (option("channel_mult_noise", 2), "channel_mult_noise 2"),
    "new option": (option("rotary", True), "the unknown option 'rotary'"),
    "channels": (option("out_channels", 3), "1 channels in and 3 out"),
    "no blocks": (option("num_blocks", 0), "num_blocks is 0, expected a positive integer"),
    "endless blocks": (option("num_blocks", 10**12), "too few for 2 levels of 1000000000000 blocks"),
    "huge width": (option("model_channels", 2**20), "another network than its options say; .* wrong shape: "),
    "no width": (option("model_channels", "wide"), "model_channels is 'wide'"),
    "odd resolution": (option("img_resolution", 9), "resolution 9 cannot be halved 1 times"),
    "huge resolution": (option("img_resolution", 2**20), "img_resolution 1048576, more than 8192"),
    "mult": (option("channel_mult", [1, 2, 2]), "missing: "),
    "mult type": (option("channel_mult", [1, 0.5]), r"channel_mult is \[1, 0\.5\]"),
    "dropout": (option("dropout", 1.5), "dropout must be in"),
    "sigma_data": (set_sigma(0.0), r"sigma_data is 0\.0"),
    "sigma_data nan": (set_sigma(math.nan), "sigma_data is nan"),
    "missing": (without_tensor, r"missing: map_layer0\.bias"),
    "unknown": (with_tensor, r"unknown: extra\.bias, extra\.weight"),
    "nan": (with_nan, r"not finite floating-point numbers .map_layer0\.weight."),
    "integers": (with_integers, r"not finite floating-point numbers .map_layer0\.bias."),
    "twice": (with_itself, "a module within itself, or twice"),
}


@pytest.mark.parametrize(("change", "message"), UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_another_network_is_refused_by_what_differs(write, change, message):
    network = tiny_edm()
    change(network)
    with pytest.raises(CheckpointError, match=rf"network-snapshot\.pkl: refused: it holds .*{message}"):
        imported(write(network))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"G_ema": None}, "no network 'ema' .--key.; it holds: G_ema"),
        ([1, 2], "no network 'ema' .--key.; it holds: no dict"),
        ({"ema": None}, "a network of class NoneType, expected EDMPrecond"),
        ({"ema": {"model": 1}}, "a network of class dict"),
        ({"ema": Raw(Linear, 2, 2)}, r"the global edm_network\.Linear"),
    ],
)
def test_a_pickle_of_something_else_is_refused(write, content, message):
    with pytest.raises(CheckpointError, match=message):
        imported(write(dump(content)))


# --- the command ---


def run(*argv: object) -> None:
    import_edm.main([str(a) for a in argv])


def refusal(capsys, *argv: object) -> str:
    with pytest.raises(SystemExit) as ending:
        errors.run_command(lambda: run(*argv))
    error = capsys.readouterr().err.strip()
    assert ending.value.code == 2 and error.startswith("error: ") and len(error.splitlines()) == 1
    return error


def test_the_command_writes_a_base_model_that_training_takes(write, tmp_path, capsys):
    network = tiny_edm(sigma_data=0.3)
    path, out = write(network), tmp_path / "model"
    run(path, "--env", "Burgers-v0", "--out", out)
    printed = capsys.readouterr().out
    assert f"{sum(p.numel() for p in network.parameters()):,} weights, sigma_data 0.3" in printed
    assert "the file does not say its units" in printed
    info, meta = checkpoints.load_meta(out)
    assert meta["kind"] == "base" and info.network.periodic == (False, False)
    assert meta["data"] == {
        "imported": "network-snapshot.pkl",
        "key": "ema",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
    }
    assert check(tiny_config(), base=out, data=None) == out
    loaded = load_model(out)
    policy, config = loaded.model.policy, loaded.config
    x = noise(2, 1, 8, 8).float()
    sigma = torch.tensor([0.1, 2.0])
    torch.testing.assert_close(policy.tuned(x, sigma), network(x, sigma), rtol=1e-5, atol=1e-5)
    assert config is None and str(tmp_path) not in (out / "meta.json").read_text() + (out / "config.json").read_text()


def test_the_command_refuses_what_does_not_fit(write, tmp_path, capsys):
    path, out = write(tiny_edm(channels=2)), tmp_path / "model"
    burgers = (path, "--env", "Burgers-v0", "--out")
    assert "a network of 2 channels at 8x8; Burgers-v0 has 1" in refusal(capsys, *burgers, out)
    assert f"--out {tmp_path} exists" in refusal(capsys, *burgers, tmp_path)
    assert "unknown env 'Stokes-v0'" in refusal(capsys, path, "--env", "Stokes-v0", "--out", out)
    assert "no network 'net' (--key); it holds: augment_pipe, dataset_kwargs, ema" in refusal(
        capsys, *burgers, out, "--key", "net"
    )
    assert "more than the limit of 1,073" in refusal(capsys, *burgers, out, "--max-gigabytes", "1e-6")
    assert "--max-gigabytes must be positive, got 0" in refusal(capsys, *burgers, out, "--max-gigabytes", "0")
    assert "nowhere.pkl: no such file" in refusal(capsys, tmp_path / "nowhere.pkl", "--env", "Burgers-v0", "--out", out)
    assert not out.exists()


def test_two_channels_fit_a_pde_of_two(write, tmp_path):
    run(write(tiny_edm(n=16, channels=2)), "--env", "Darcy-v0", "--out", tmp_path / "model")
    assert checkpoints.load_denoiser(tmp_path / "model")[0].env_id == "Darcy-v0"
