"""The pickles of EDM and DiffusionPDE: the globals that they may name, and their tensors.

Objects of EDM's own classes become Inert; the source text of these classes in the pickle is ignored. Tensors stay references
into the file's bytes until ``TensorRef.array`` has checked them against their storage.
"""

import io
import math
import struct
import warnings
import zipfile
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pirf_ray.diffusion.checkpoints import CheckpointError
from pirf_ray.diffusion.foreign.inert_pickle import Global, Inert, Machine, Refused, Rules, make_set

MAX_DIMENSIONS = 8
LEGACY_MAGIC, LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001
"""First two values of torch.save's layout before torch 1.6. Storages in plain pickles still have this layout."""
DTYPES = {
    Global("torch", "DoubleStorage"): "<f8",
    Global("torch", "FloatStorage"): "<f4",
    Global("torch", "HalfStorage"): "<f2",
    Global("torch", "LongStorage"): "<i8",
    Global("torch", "IntStorage"): "<i4",
    Global("torch", "ShortStorage"): "<i2",
    Global("torch", "CharStorage"): "<i1",
    Global("torch", "ByteStorage"): "<u1",
    Global("torch", "BoolStorage"): "|b1",
}
_DAMAGE = (EOFError, struct.error, zipfile.BadZipFile)
"""Errors of the standard library's parsers besides ValueError and LookupError."""


class StorageRef:
    """Bytes of one torch storage, as torch.save wrote them."""

    def __init__(self, data: bytes) -> None:
        if type(data) is not bytes:
            raise Refused("a storage that is not bytes")
        self.data = data

    @cached_property
    def values(self) -> np.ndarray:
        """Return the numbers (n,), a read-only view of the file's bytes."""
        return _zip_storage(self.data) if self.data[:2] == b"PK" else _legacy_storage(self.data)


class TensorRef:
    """Tensor as a view of a storage. It is unchecked until ``shape`` or ``array`` is called."""

    def __init__(self, storage: StorageRef, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: Any) -> None:
        self.storage, self.offset, self.size, self.stride = storage, offset, size, stride

    def shape(self) -> tuple[int, ...]:
        """Return the shape. Refused unless the tensor lies within its storage and has at most as many numbers."""
        if not isinstance(self.storage, StorageRef):
            raise Refused("a tensor without a storage")
        count = len(self.storage.values)
        if any(type(t) is not tuple or len(t) > MAX_DIMENSIONS for t in (self.size, self.stride)):
            raise Refused(f"a tensor whose size and stride are not tuples of at most {MAX_DIMENSIONS}")
        if any(type(i) is not int or i < 0 for i in (self.offset, *self.size, *self.stride)):
            raise Refused("a tensor whose size, stride or offset is not a natural number")
        last = self.offset + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))
        if min(self.size, default=1) < 1 or last >= count or math.prod(self.size) > count:
            raise Refused(f"a tensor that does not lie within its storage of {count} numbers")
        return self.size

    def array(self) -> np.ndarray:
        """Return a copy of the numbers, in the dtype of the storage. Refused as ``shape`` is."""
        shape, values = self.shape(), self.storage.values
        strides = [step * values.itemsize for step in self.stride]
        return np.lib.stride_tricks.as_strided(values[self.offset :], shape, strides, writeable=False).copy()


class NumpyType(Inert):
    """Numpy dtype whose class_name is its code, such as f8."""

    def set_state(self, state: Any) -> None:
        """Refuse a dtype that is not little-endian."""
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|"):
            raise Refused("a numpy dtype that is not little-endian")


def _empty_dict(*args: Any) -> dict[Any, Any]:
    if args:
        raise Refused("a dict with constructor arguments")
    return {}


def _parameter(data: Any, *_: Any) -> TensorRef:
    if not isinstance(data, TensorRef):
        raise Refused("a parameter that is not a tensor")
    return data


def _persistent(meta: dict[str, Any]) -> Inert:
    if type(meta) is not dict or meta.get("type") != "class" or type(meta.get("class_name")) is not str:
        raise Refused("a persistent object without a class name")
    return Inert(meta["class_name"], state=meta.get("state"))


def _numpy_type(code: str, *_: Any) -> NumpyType:
    if code not in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"):
        raise Refused(f"the numpy dtype {ascii(code)[:40]}")
    return NumpyType(code)


def _numpy_scalar(dtype: NumpyType, data: bytes) -> float | int | bool:
    if not isinstance(dtype, NumpyType) or type(data) is not bytes or len(data) != int(dtype.class_name[1]):
        raise Refused("a numpy scalar that is not one number")
    number: float | int | bool = np.frombuffer(data, "<" + dtype.class_name).item()
    return number


STORAGE_RULES = Rules(builders={}, names=DTYPES, persistent_ids=True)
NETWORK_RULES = Rules(
    builders={
        Global("collections", "OrderedDict"): _empty_dict,
        Global("dnnlib.util", "EasyDict"): _empty_dict,
        Global("builtins", "set"): make_set,
        Global("torch._utils", "_rebuild_tensor_v2"): TensorRef,
        Global("torch._utils", "_rebuild_parameter"): _parameter,
        Global("torch.storage", "_load_from_bytes"): StorageRef,
        Global("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
        Global("numpy", "dtype"): _numpy_type,
        Global("numpy.core.multiarray", "scalar"): _numpy_scalar,
        Global("numpy._core.multiarray", "scalar"): _numpy_scalar,
    },
    inert=[Global("torch.nn.modules.container", name) for name in ("ModuleDict", "ModuleList", "Sequential")],
    inert_packages=["dnnlib", "torch_utils", "training"],
)


def _storage_type(identifier: Any) -> tuple[np.dtype, str, int]:
    """Return dtype, key and count of the persistent id ('storage', type, key, location, count[, view])."""
    if type(identifier) is not tuple or len(identifier) not in (5, 6) or any(v is not None for v in identifier[5:]):
        raise Refused("a storage of another layout")
    tag, kind, key, _, count = identifier[:5]
    named = isinstance(kind, Global) and kind in DTYPES and type(key) is str
    if tag != "storage" or not named or type(count) is not int or count < 1:
        raise Refused("a storage of another layout")
    return np.dtype(DTYPES[kind]), key, count


def _legacy_storage(data: bytes) -> np.ndarray:
    """Return the numbers of the old layout: 5 pickles (magic, version, system, persistent id, keys), an 8-byte count, the numbers."""
    stream = io.BytesIO(data)
    magic, version, system, identifier, keys = (Machine(STORAGE_RULES).run(stream) for _ in range(5))
    if (magic, version) != (LEGACY_MAGIC, LEGACY_VERSION) or type(system) is not dict or system.get("little_endian") is not True:
        raise Refused("a storage of another layout")
    dtype, key, count = _storage_type(identifier)
    if keys != [key] or int.from_bytes(stream.read(8), "little") != count:
        raise Refused("a storage whose parts do not agree")
    return _numbers(data, stream.tell(), dtype, count)


def _zip_storage(data: bytes) -> np.ndarray:
    """Return the numbers of the zip layout: an uncompressed archive of data.pkl, data/<key> and optionally byteorder."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = {entry.filename: entry for entry in archive.infolist()}
        if any(e.compress_type != zipfile.ZIP_STORED or e.file_size > len(data) for e in entries.values()):
            raise Refused("a storage in a compressed archive")
        root = next((name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")), None)
        if root is None or (f"{root}byteorder" in entries and archive.read(f"{root}byteorder") != b"little"):
            raise Refused("a storage of another layout")
        dtype, key, count = _storage_type(Machine(STORAGE_RULES).run(io.BytesIO(archive.read(f"{root}data.pkl"))))
        return _numbers(archive.read(f"{root}data/{key}"), 0, dtype, count)


def _numbers(data: bytes, start: int, dtype: np.dtype, count: int) -> np.ndarray:
    if count * dtype.itemsize > len(data) - start:
        raise Refused(f"a storage of {count} numbers, cut short")
    return np.frombuffer(data, dtype, count, start)


def read(path: Path, *, max_bytes: int = 4 * 2**30) -> tuple[Any, bytes]:
    """Return the pickle's value and the file's bytes. CheckpointError names the file and the refused content."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    if path.stat().st_size > max_bytes:
        raise CheckpointError(f"{path}: {path.stat().st_size:,} bytes, more than the limit of {max_bytes:,}")
    data = path.read_bytes()
    if data[:2] == b"PK":
        raise CheckpointError(f"{path}: an archive (of torch.save?), expected a plain pickle")
    return guarded(path, lambda: Machine(NETWORK_RULES).run(io.BytesIO(data))), data


def guarded(path: Path, action: Callable[[], Any]) -> Any:
    """Return the result of ``action`` on a file's content. Every failure is raised as a CheckpointError that names the file."""
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):  # about escapes in the file's text
            return action()
    except Refused as error:
        raise CheckpointError(f"{path}: refused: it holds {error}") from None
    except (ValueError, LookupError, TypeError, ArithmeticError, MemoryError, RuntimeError, *_DAMAGE) as error:
        raise CheckpointError(f"{path}: damaged, cut short or not a pickle of EDM ({ascii(str(error))[1:-1][:120]})") from None
