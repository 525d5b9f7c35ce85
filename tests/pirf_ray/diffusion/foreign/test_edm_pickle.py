"""Hostile and damaged pickles are refused by name, in bounded memory, and run nothing."""

import collections
import contextlib
import pickle
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from edm_network import MEGABYTE, dump, edm_modules, peak, snapshot, tiny_edm
from pirf_ray.diffusion.checkpoints import CheckpointError
from pirf_ray.diffusion.foreign import edm, edm_pickle, inert_pickle


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def stack_global(module: str, name: str) -> bytes:
    return b"\x80\x04" + text(module) + text(name) + b"\x93"


def call(module: str, name: str, *args: str) -> bytes:
    """Return a pickle that calls a global by its STACK_GLOBAL opcode."""
    return stack_global(module, name) + b"(" + b"".join(map(text, args)) + b"tR."


# --- code ---

COMMAND = "touch CANARY"
GLOBALS = [
    ("os", "system"),
    ("posix", "system"),
    ("subprocess", "Popen"),
    ("builtins", "eval"),
    ("builtins", "exec"),
    ("builtins", "getattr"),
    ("builtins", "__import__"),
    ("__builtin__", "eval"),
    ("torch", "os.system"),
    ("torch.serialization", "load"),
    ("torch", "FloatStorage"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__"),
    ("torch.storage", "torch.load"),
    ("torch.nn.modules.container", "ModuleDict.__init__.__globals__"),
    ("collections", "OrderedDict.fromkeys.__globals__"),
    ("collections.OrderedDict", "fromkeys"),
    ("functools", "partial"),
    ("copyreg", "_reconstructor"),
    ("importlib", "import_module"),
    ("numpy", "load"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("dnnlib_evil", "system"),
    ("", "os.system"),
]


@pytest.mark.parametrize(("module", "name"), GLOBALS)
@pytest.mark.parametrize("opcode", ["STACK_GLOBAL", "GLOBAL", "INST"])
def test_a_global_outside_the_rules_is_refused_by_name(write, module, name, opcode):
    content = {
        "STACK_GLOBAL": call(module, name, COMMAND),
        "GLOBAL": b"c" + f"{module}\n{name}\n".encode() + b"(" + text(COMMAND) + b"tR.",
        "INST": b"(" + text(COMMAND) + b"i" + f"{module}\n{name}\n.".encode(),
    }[opcode]
    with pytest.raises(CheckpointError) as refused:
        edm_pickle.read(write(content))
    path, _, message = str(refused.value).partition(": ")
    assert path.endswith("hostile.pkl")
    assert message == f"refused: it holds the {'opcode INST' if opcode == 'INST' else f'global {module}.{name}'}"


def runs_code(path: Path) -> list[bytes]:
    """Return pickles that make the file ``path`` when pickle loads them."""
    command = f"touch {path}"
    system = b"cos\nsystem\n"
    evil_object = type("Evil", (), {"__reduce__": lambda self: (eval, (f"open({str(path)!r}, 'w')",))})()
    return [
        call("os", "system", command),
        call("posix", "system", command),
        system + b"(" + text(command) + b"tR.",
        b"(" + text(command) + b"ios\nsystem\n.",
        b"(" + system + text(command) + b"o.",
        call("subprocess", "getoutput", command),
        call("builtins", "eval", f"__import__('os').system({command!r})"),
        stack_global("builtins", "getattr") + b"(" + text("x") + text("upper") + b"tR0" + call("os", "system", command),
        pickle.dumps({"ema": evil_object}),
        stack_global("torch.storage", "_load_from_bytes") + b"(" + binary(call("os", "system", command)) + b"tR.",
    ]


def binary(data: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(data)) + data


@pytest.mark.parametrize("case", range(10))
def test_a_malicious_pickle_runs_nothing(write, tmp_path, case):
    canary = tmp_path / "canary"
    content = runs_code(canary)[case]
    path = write(content)
    with pytest.raises(CheckpointError, match=r"hostile\.pkl: "):
        edm.load(path)
    assert not canary.exists()
    with contextlib.suppress(TypeError, RuntimeError, pickle.UnpicklingError):
        pickle.loads(content)
    assert canary.exists()  # the file is malicious indeed


OPCODES = {
    "EXT1": b"\x82\x01.",
    "EXT4": b"\x84\x01\x00\x00\x00.",
    "PERSID": b"Pkey\n.",
    "NEWOBJ_EX": stack_global("dnnlib.util", "EasyDict") + b")}\x92.",
    "OBJ": b"(" + stack_global("dnnlib.util", "EasyDict") + b"o.",
    "BYTEARRAY8": b"\x96" + struct.pack("<Q", 1) + b"x.",
    "NEXT_BUFFER": b"\x97.",
    "FROZENSET": b"(\x91.",
}


@pytest.mark.parametrize(("name", "content"), OPCODES.items(), ids=OPCODES.keys())
def test_an_opcode_that_no_such_file_needs_is_refused_by_name(write, name, content):
    with pytest.raises(CheckpointError, match=rf"hostile\.pkl: refused: it holds the opcode {name}"):
        edm_pickle.read(write(content))


ORDERED = stack_global("collections", "OrderedDict")
TENSOR = stack_global("torch._utils", "_rebuild_tensor_v2")
INERT = stack_global("training.networks", "EDMPrecond")
MISUSES = {
    "persistent id": (b"K\x01Q.", "a persistent id"),
    "state of a global": (TENSOR + b"N}" + text("__defaults__") + b")s\x86b.", "a state for a Global"),
    "state of a class": (INERT + b"}" + text("__reduce__") + b"Nsb.", "a state for a Global"),
    "state of a tensor": (TENSOR + b"(NK\x00))\x89Nt" + b"R}b.", "a state for a TensorRef"),
    "state of a list": (b"]}b.", "a state for a list"),
    "call of a string": (text("upper") + b")R.", "a call of anything but a known class"),
    "call of an object": (INERT + b")R)R.", "a call of anything but a known class"),
    "arguments that are a list": (INERT + b"]R.", "a call of anything but a known class"),
    "filled OrderedDict": (ORDERED + b"(]tR.", "a dict with constructor arguments"),
    "items of an object": (INERT + b")R" + text("a") + b"Ns.", "items of anything but a dict"),
    "append to a dict": (b"}Na.", "an append to anything but a list"),
    "add to a dict": (b"}(N\x90.", "an addition to anything but a set"),
    "key that is a tuple": (b"}))s.", "a key that is neither a number nor a string"),
    "set of tuples": (b"\x8f()\x90.", "a set of anything but numbers and strings"),
    "global that is no name": (b"K\x01K\x02\x93.", "a global whose name is not a string"),
    "numpy object": (stack_global("numpy", "dtype") + text("O8") + b"\x85R.", "the numpy dtype 'O8'"),
    "big-endian": (
        stack_global("numpy", "dtype") + text("f8") + b"\x85R(K\x03" + text(">") + b"tb.",
        "a numpy dtype that is not little-endian",
    ),
    "parameter of a list": (stack_global("torch._utils", "_rebuild_parameter") + b"]\x85R.", "a parameter that is not a tensor"),
    "storage of text": (stack_global("torch.storage", "_load_from_bytes") + text("x") + b"\x85R.", "a storage that is not bytes"),
}


@pytest.mark.parametrize(("content", "message"), MISUSES.values(), ids=MISUSES.keys())
def test_a_misused_opcode_is_refused(write, content, message):
    with pytest.raises(CheckpointError, match=rf"hostile\.pkl: refused: it holds {message}"):
        edm_pickle.read(write(content))


def test_objects_of_edm_are_inert(write):
    with edm_modules():
        value, _ = edm_pickle.read(write(INERT + b"(" + text("os.system") + b"tR}" + text("a") + b"K\x01sb."))
    assert (value.class_name, value.args, value.state) == ("EDMPrecond", ("os.system",), {"a": 1})


def test_an_error_does_not_carry_the_files_control_characters(write):
    with pytest.raises(CheckpointError) as refused:
        edm_pickle.read(write(call("evil\x1b[2J\n", "x" * 5000)))
    assert str(refused.value).isprintable() and len(str(refused.value)) < 600


# --- what plain values become ---


@pytest.mark.parametrize("protocol", [3, 4, 5])
def test_plain_values_come_back(write, protocol):
    value = {
        "numbers": [1, -1, 2**31, 2**70, 0.5, True, False, None],
        "text": ["a", "\u00e9" * 300, b"bytes", b"x" * 300],
        "nested": {"t": (), "u": (1,), "v": (1, 2), "w": (1, 2, 3, 4), "set": {1, 2}, 3: "three"},
        "shared": [[]] * 2,
        "scalars": [np.sqrt(0.5), np.float32(0.1), np.int64(-3), np.bool_(True)],
        "ordered": collections.OrderedDict(a=1, b=2),
    }
    read, _ = edm_pickle.read(write(pickle.dumps(value, protocol)))
    assert read == value and read["shared"][0] is read["shared"][1]
    assert [type(v) for v in read["scalars"]] == [float, float, int, bool]


def test_scalars_of_numpy_1_are_read(write):
    scalar = stack_global("numpy.core.multiarray", "scalar")
    dtype = (
        stack_global("numpy", "dtype")
        + text("f8")
        + b"\x89\x88\x87R(K\x03"
        + text("<")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    )
    value, _ = edm_pickle.read(write(scalar + dtype + b"C\x08" + struct.pack("<d", 0.75) + b"\x86R."))
    assert value == 0.75


# --- damage ---


def test_every_truncation_is_one_error_that_names_the_file(write):
    whole = snapshot(tiny_edm(channel_mult=[1], attn_resolutions=[]))
    for length in {*range(64), *range(64, len(whole), len(whole) // 150), len(whole) - 1}:
        with pytest.raises(CheckpointError, match=r"hostile\.pkl: damaged, cut short or not a pickle"):
            edm.load(write(whole[:length]))


@pytest.mark.parametrize(
    "content", [b"", b"\n", b".", b"garbage", b"\x00" * 100, b"{}", b"N" * 50, b"\x80\x04K\x01", b"\x89HDF\r\n"]
)
def test_what_is_not_a_pickle_is_refused(write, content):
    with pytest.raises(CheckpointError, match=r"hostile\.pkl: (damaged|refused)"):
        edm_pickle.read(write(content))


def test_decoding_does_not_warn(write):
    path = write(b"S'\\}'\n.")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert edm_pickle.read(path)[0] == "\\}"


def test_files_of_torch_save_are_refused_as_such(write, tmp_path):
    torch.save({"net": torch.zeros(2)}, tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match="an archive .of torch.save"):
        edm_pickle.read(tmp_path / "state.pt")


def test_flipped_bytes_are_refused_or_give_a_finite_network(write):
    whole, rng = snapshot(tiny_edm(channel_mult=[1], attn_resolutions=[])), np.random.default_rng(0)
    for _ in range(80):
        data = bytearray(whole)
        data[rng.integers(len(data))] ^= 1 << rng.integers(8)
        try:
            denoiser, _, _ = edm.load(write(bytes(data)))
        except CheckpointError:
            continue
        assert all(torch.isfinite(t).all() for t in denoiser.state_dict().values())


# --- declared sizes ---

HUGE = struct.pack("<Q", 2**62)
BOMBS = {
    "BINBYTES8": b"\x80\x04\x8e" + HUGE + b"x.",
    "BINUNICODE8": b"\x80\x04\x8d" + HUGE + b"x.",
    "BINBYTES8 of 100 GB": b"\x80\x04\x8e" + struct.pack("<Q", 10**11) + b"x.",
    "FRAME": b"\x80\x04\x95" + HUGE + b"N.",
    "BINBYTES": b"B\xff\xff\xff\xffx.",
    "BINSTRING": b"T\xff\xff\xff\x7fx.",
    "LONG4": b"\x8b\xff\xff\xff\x7fx.",
    "LONG": b"L" + b"9" * 10**5 + b"L\n.",
    "memo": b"Nr\xff\xff\xff\xff.",
    "memo by text": b"Np" + b"9" * 30 + b"\n.",
    "deep": b"]" + b"\x85" * 100_000 + b".",
    "deep key": b"}" + b")" + b"\x85" * 100_000 + b"Ns.",
    "deep object": INERT + b"0" + (b"N" + b"\x85" * 100_000) + b".",
    "marks": b"(" * 10**5 + b".",
}


@pytest.mark.parametrize("content", BOMBS.values(), ids=BOMBS.keys())
def test_a_declared_size_allocates_nothing(write, content):
    path = write(content)
    assert peak(lambda: edm.load(path)) < 4 * MEGABYTE + 100 * len(content)


def test_endless_opcodes_are_refused(write, monkeypatch):
    monkeypatch.setattr(inert_pickle, "MAX_OPCODES", 1000)
    with pytest.raises(CheckpointError, match="a pickle of more than 1,000 opcodes"):
        edm_pickle.read(write(b"N0" * 501 + b"N."))


def test_nothing_here_is_loaded_by_pickle_or_torch(write, monkeypatch):
    path = write(dump({"a": torch.zeros(3)}))
    for module, name in ((pickle, "Unpickler"), (pickle, "loads"), (pickle, "load"), (torch, "load")):
        monkeypatch.setattr(module, name, None)
    value, _ = edm_pickle.read(path)
    assert value["a"].array().tolist() == [0, 0, 0]
