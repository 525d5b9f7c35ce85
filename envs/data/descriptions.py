"""Descriptions of other codes' fields: which array holds each channel of a PDE, on which grid, in which units.

For each channel of the PDE a description names the array, the axes of the array, and the conversion to physical units (value *
scale + offset). For the PDE's row and column axes it names the points that are taken and their coordinates. A description in
TOML, with file names relative to the description:

    [channels.u]
    file = "1D_Burgers_Sols_Nu0.01.hdf5"
    dataset = "tensor"                       # HDF5 only
    axes = ["sample", "t", "x"]              # axes of the array, in order
    index = {}                               # position on each other axis, such as {time = 0}
    scale = 1.0
    offset = 0.0

    [axes.t]
    stride = "0:126:5"                       # a step, or start:stop:step
    coordinates = "t-coordinate"             # HDF5 dataset, or instead extent = 1.0 and layout = "vertex"
    origin = 0.0                             # subtracted from the coordinates

    [axes.sample]
    stride = "0:9000"                        # part of the samples, optional
"""

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

SAMPLE = "sample"
"""Name of the axis of samples."""


class ImportDescriptionError(ValueError):
    """An error about a description that is incomplete or that contradicts the files or the PDE."""


@dataclass(frozen=True, kw_only=True)
class ChannelSource:
    """The array that holds a channel, and its units: physical value = stored value * scale + offset."""

    file: Path
    """HDF5 file, .npy file, or directory with a .npy file per sample, sorted by the numbers in the names."""
    axes: tuple[str, ...]
    """Names of the axes of the array: ``sample`` (except in a directory), the PDE's two axes, and any others."""
    dataset: str | None = None
    """Dataset of an HDF5 file."""
    index: Mapping[str, int] = field(default_factory=dict)
    """Position that is taken on each other axis."""
    scale: float = 1.0
    """Physical units per unit of the stored values."""
    offset: float = 0.0
    """Physical value of the stored value 0."""


@dataclass(frozen=True, kw_only=True)
class AxisSource:
    """The points of an axis that are taken, and their coordinates.

    The coordinates are a dataset, or follow from the extent and the layout of the whole axis.
    """

    stride: str = "1"
    """Step, or start:stop:step."""
    coordinates: str | None = None
    """HDF5 dataset of the coordinates."""
    extent: float | None = None
    """Length of the whole axis."""
    layout: str | None = None
    """Layout of the whole axis: periodic, vertex or cell, as in ``envs.numerics.grids.Axis``."""
    origin: float = 0.0
    """Coordinate of the PDE's 0: it is subtracted from the coordinates."""

    @property
    def points(self) -> slice:
        """Slice of the positions that are taken. ImportDescriptionError if the stride is malformed."""
        if not re.fullmatch(r"[1-9]\d*|\d*:\d*(:([1-9]\d*)?)?", self.stride):
            raise ImportDescriptionError(
                f"stride must be a step such as 4, or start:stop:step such as 0:101:4, got {self.stride!r}"
            )
        numbers = [int(part) if part else None for part in self.stride.split(":")]
        return slice(None, None, numbers[0]) if len(numbers) == 1 else slice(*numbers)


@dataclass(frozen=True, kw_only=True)
class Description:
    """The sources of all channels and axes of a PDE's fields."""

    channels: Mapping[str, ChannelSource]
    """Source of each channel by the channel's name."""
    axes: Mapping[str, AxisSource] = field(default_factory=dict)
    """Source of each axis by the axis' name. An axis without an entry is taken whole."""

    @classmethod
    def parse(cls, content: Mapping[str, Any], directory: Path) -> "Description":
        """Return the description in tables as TOML has them. File names are relative to ``directory``."""
        _refuse_unknown("description", content, ("channels", "axes"))
        channels = {
            name: _parsed(ChannelSource, f"channels.{name}", table) for name, table in _table(content, "channels").items()
        }
        axes = {name: _parsed(AxisSource, f"axes.{name}", table) for name, table in _table(content, "axes").items()}
        located = {name: replace(source, file=directory / source.file) for name, source in channels.items()}
        return cls(channels=located, axes=axes)

    @classmethod
    def read(cls, path: Path) -> "Description":
        """Return the description in a TOML file. ImportDescriptionError names the file and the mistake."""
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
