"""Descriptions of other codes' fields: which array holds each channel of a PDE, on which grid, in which units.

A description says, for each channel of the PDE, which array holds it, what each axis of that array is, and how its values
become physical units (value * scale + offset); and for the PDE's row and column axes which points are taken and where
they lie. As TOML, with file names relative to it:

    [channels.u]
    file = "1D_Burgers_Sols_Nu0.01.hdf5"
    dataset = "tensor"                       # HDF5 only
    axes = ["sample", "t", "x"]              # of the array, in order
    index = {}                               # position on each axis that is neither sample nor the PDE's, e.g. {time = 0}
    scale = 1.0
    offset = 0.0

    [axes.t]
    stride = "0:126:5"                       # a step, or start:stop:step
    coordinates = "t-coordinate"             # HDF5 dataset; or: extent = 1.0 and layout = "vertex"
    origin = 0.0                             # subtracted from the coordinates

    [axes.sample]
    stride = "0:9000"                        # optional: a part of the samples
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

SAMPLE = "sample"


class ImportDescriptionError(ValueError):
    """A description that is incomplete, or that the files or the PDE contradict."""


@dataclass(frozen=True, kw_only=True)
class ChannelSource:
    """Where one channel comes from: physical value = stored value * scale + offset."""

    file: Path
    """HDF5 file, .npy file, or directory of .npy files of one sample each (sorted by the numbers in their names)."""
    axes: tuple[str, ...]
    """Name of each axis of the array: ``sample`` (not in a directory), the PDE's two, and any others."""
    dataset: str | None = None
    """Dataset of an HDF5 file."""
    index: Mapping[str, int] = field(default_factory=dict)
    """Position to take on each other axis."""
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True, kw_only=True)
class AxisSource:
    """Which points of an axis are taken, and where they lie: ``coordinates``, or ``extent`` and ``layout`` of the whole axis."""

    stride: str = "1"
    """Step, or start:stop:step."""
    coordinates: str | None = None
    """HDF5 dataset of the coordinates."""
    extent: float | None = None
    layout: str | None = None
    """periodic, vertex or cell; see ``envs.numerics.grids.Axis``."""
    origin: float = 0.0
    """Subtracted from the coordinates; the PDE's axes begin at 0."""

    @property
    def points(self) -> slice:
        if not re.fullmatch(r"[1-9]\d*|\d*:\d*(:([1-9]\d*)?)?", self.stride):
            raise ImportDescriptionError(
                f"stride must be a step such as 4, or start:stop:step such as 0:101:4, got {self.stride!r}"
            )
        numbers = [int(part) if part else None for part in self.stride.split(":")]
        return slice(None, None, numbers[0]) if len(numbers) == 1 else slice(*numbers)


@dataclass(frozen=True, kw_only=True)
class Description:
    """A whole description: sources of all channels, by channel, and of axes, by name."""

    channels: Mapping[str, ChannelSource]
    axes: Mapping[str, AxisSource] = field(default_factory=dict)

    @classmethod
    def parse(cls, content: Mapping[str, Any], directory: Path) -> "Description":
        """From plain tables, as TOML has them; file names are relative to ``directory``."""
        _refuse_unknown("description", content, ("channels", "axes"))
        channels = {
            name: _parsed(ChannelSource, f"channels.{name}", table) for name, table in _table(content, "channels").items()
        }
        axes = {name: _parsed(AxisSource, f"axes.{name}", table) for name, table in _table(content, "axes").items()}
        located = {name: replace(source, file=directory / source.file) for name, source in channels.items()}
        return cls(channels=located, axes=axes)

    @classmethod
    def read(cls, path: Path) -> "Description":
        """From a TOML file."""
        try:
            return cls.parse(tomllib.loads(path.read_text(encoding="utf-8")), path.parent)
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ImportDescriptionError(f"{path}: not a TOML file ({error})") from None
        except ImportDescriptionError as error:
            raise ImportDescriptionError(f"{path}: {error}") from None


def _table(content: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    table = content.get(name, {})
    if not isinstance(table, Mapping) or not all(isinstance(value, Mapping) for value in table.values()):
        raise ImportDescriptionError(f"{name} must be a table of tables, got {table!r}")
    return table


def _refuse_unknown(where: str, table: Mapping[str, Any], known: Iterable[str]) -> None:
    unknown = sorted(table.keys() - set(known))
    if unknown:
        raise ImportDescriptionError(f"{where}: unknown key {unknown[0]!r}; known: {', '.join(known)}")


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text")
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(name, str) for name in value):
        raise TypeError("a list of axis names")
    return tuple(value)


def _positions(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping) or not all(type(position) is int and position >= 0 for position in value.values()):
        raise TypeError("a table of positions, from 0, by axis")
    return dict(value)


def _stride(value: Any) -> str:
    return str(value) if type(value) is int else _text(value)


CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("scale", "offset", "extent", "origin"), _number),
    **dict.fromkeys(("dataset", "coordinates", "layout"), _text),
    "file": lambda value: Path(_text(value)),
    "axes": _names,
    "index": _positions,
    "stride": _stride,
}


def _parsed(kind: type, where: str, table: Mapping[str, Any]) -> Any:
    _refuse_unknown(where, table, [f.name for f in fields(kind)])
    values = {}
    for name, value in table.items():
        try:
            values[name] = CONVERSIONS[name](value)
        except TypeError as error:
            raise ImportDescriptionError(f"{where}.{name} must be {error}, got {value!r}") from None
    for name in ("file", "axes") if kind is ChannelSource else ():
        if name not in values:
            raise ImportDescriptionError(f"{where}: {name!r} is missing")
    return kind(**values)
