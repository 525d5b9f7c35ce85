"""Tensors and storages of hostile files are refused before an array of their declared size is made."""

import io
import pickle
import zipfile

import pytest
import torch

from edm_network import MEGABYTE, Raw, peak, snapshot, tiny_edm
from pirf_ray.diffusion.checkpoints import CheckpointError
from pirf_ray.diffusion.foreign import edm


def stored(values: torch.Tensor, *, archive: bool = False) -> bytes:
    buffer = io.BytesIO()
    torch.save(torch.storage.TypedStorage(wrap_storage=values.untyped_storage(), dtype=values.dtype, _internal=True), buffer,
               _use_new_zipfile_serialization=archive)  # fmt: skip
    return buffer.getvalue()


def rebuilt(storage: bytes, offset: object, size: object, stride: object) -> Raw:
    return Raw(torch._utils._rebuild_tensor_v2, Raw(torch.storage._load_from_bytes, storage), offset, size, stride, False, {})


def with_weight(storage: bytes | None = None, offset: object = 0, size: object = (32,), stride: object = (1,)) -> bytes:
    """Return a pickle of a network whose map_layer0.bias (32,) is declared by the arguments."""
    network = tiny_edm()
    data = stored(torch.arange(32.0)) if storage is None else storage
    network.model.map_layer0.__dict__["_parameters"] = {
        **network.model.map_layer0._parameters,
        "bias": rebuilt(data, offset, size, stride),
    }
    return snapshot(network)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("archive", [False, True])
def test_both_layouts_of_storages_are_read(write, dtype, archive):
    values = torch.randn(32, dtype=dtype)
    denoiser, _, _ = edm.load(write(with_weight(stored(values, archive=archive))))
    assert torch.equal(denoiser.network.map_layer0.bias, values.float())


IMPOSSIBLE = {
    "beyond the end": {"offset": 1},
    "far beyond": {"offset": 2**70},
    "stride": {"stride": (2,)},
    "huge stride": {"stride": (2**62,)},
    "huge": {"size": (10**12,), "stride": (0,)},
    "huge in parts": {"size": (10**6, 10**6), "stride": (0, 0)},
    "many dimensions": {"size": (1,) * 1000, "stride": (0,) * 1000},
    "empty": {"size": (0,)},
    "negative": {"size": (-1,)},
    "negative offset": {"offset": -1},
    "negative stride": {"offset": 31, "stride": (-1,)},
    "unequal": {"size": (4, 8)},
    "fraction": {"size": (0.5,)},
    "bool": {"size": (True,)},
    "list": {"size": [32]},
}


@pytest.mark.parametrize("layout", IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_a_tensor_outside_its_storage_is_refused_without_being_made(write, layout):
    path = write(with_weight(**layout))
    assert peak(lambda: edm.load(path)) < MEGABYTE + 20 * path.stat().st_size


def test_weights_that_share_one_storage_make_no_larger_network(write):
    network = tiny_edm(model_channels=32)
    data = Raw(torch.storage._load_from_bytes, stored(torch.zeros(64 * 128 * 9)))
    for module in network.modules():
        shared = {
            name: Raw(torch._utils._rebuild_tensor_v2, data, 0, tuple(p.shape), p.stride(), False, {})
            for name, p in module._parameters.items()
            if p is not None
        }
        module.__dict__["_parameters"] = shared
    path = write(snapshot(network))
    with pytest.raises(CheckpointError, match="more weights than bytes: tensors that share their storage"):
        edm.load(path)


def compressed(data: bytes) -> bytes:
    source, out = zipfile.ZipFile(io.BytesIO(data)), io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            archive.writestr(entry.filename, source.read(entry))
    return out.getvalue()


def edited(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new)


FLOATS = stored(torch.arange(32.0))
STORAGES = {
    "compressed": compressed(stored(torch.zeros(10**5), archive=True)),
    "cut archive": stored(torch.zeros(32), archive=True)[:-40],
    "cut": FLOATS[:-1],
    "no numbers": FLOATS[:-128],
    "empty": b"",
    "other magic": b"\x80\x02K\x01." + FLOATS[15:],
    "not a storage": pickle.dumps([1, 2]),
    "count": edited(FLOATS, b"cpuq\x03K ", b"cpuq\x03K!"),
    "huge count": edited(
        edited(FLOATS, b"cpuq\x03K ", b"cpuq\x03J\xff\xff\xff\x7f"), b" \0\0\0\0\0\0\0", b"\xff\xff\xff\x7f\0\0\0\0"
    ),
    "type": edited(FLOATS, b"ctorch\nFloatStorage", b"ctorch\nEvilXStorage"),
    "other module": edited(FLOATS, b"ctorch\nFloatStorage", b"cos\nsystem"),
    "big-endian": edited(FLOATS, b"little_endianq\x02\x88", b"little_endianq\x02\x89"),
    "bfloat16": stored(torch.zeros(32, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("storage", STORAGES.values(), ids=STORAGES.keys())
def test_a_damaged_or_hostile_storage_is_refused(write, storage):
    path = write(with_weight(storage))
    assert peak(lambda: edm.load(path)) < MEGABYTE + 20 * path.stat().st_size


def test_a_compressed_storage_is_refused_as_such(write):
    with pytest.raises(CheckpointError, match="a storage in a compressed archive"):
        edm.load(write(with_weight(STORAGES["compressed"])))


def test_a_command_inside_a_storage_does_not_run(write, tmp_path):
    canary = tmp_path / "canary"
    with pytest.raises(CheckpointError, match=r"the global os\.system"):
        edm.load(write(with_weight(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())))
    assert not canary.exists()
