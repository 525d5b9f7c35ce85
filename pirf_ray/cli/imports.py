"""Flags that describe the fields of other codes, channel by channel."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from envs.data.descriptions import Description


@dataclass(frozen=True, kw_only=True)
class ImportFlags:
    """What is imported, channel by channel. NAME is a channel (u), or with the grid's flags an axis (x)."""

    import_pdebench: Path | None = None
    """HDF5 file of the layout of PDEBench to import; --channel names its datasets."""
    import_npy: bool = False
    """Import .npy arrays; --channel names files, or directories with one file per sample."""
    description: Path | None = None
    """TOML file that says all that the flags below say, for either kind (its layout: envs/data/descriptions.py)."""
    channel: tuple[str, ...] = ()
    """CHANNEL=DATASET or CHANNEL=FILE.npy or CHANNEL=DIRECTORY, for every channel of the PDE, such as u=tensor."""
    axes: tuple[str, ...] = ()
    """The arrays' axes in order, such as sample,t,x, or CHANNEL=AXES where channels differ. Arrays of a directory have no sample axis."""
    index: tuple[str, ...] = ()
    """Position on an axis that is neither sample nor the grid's, such as time=0, or CHANNEL.AXIS=POSITION."""
    scale: tuple[str, ...] = ()
    """CHANNEL=FACTOR to physical units: physical = stored * scale + offset."""
    offset: tuple[str, ...] = ()
    """CHANNEL=OFFSET in physical units."""
    stride: tuple[str, ...] = ()
    """AXIS=STEP or AXIS=START:STOP:STEP, for an axis of the grid or for sample. Nothing is ever interpolated."""
    coordinates: tuple[str, ...] = ()
    """AXIS=DATASET of the coordinates in an HDF5 file. Default: AXIS-coordinate, as in PDEBench."""
    extent: tuple[str, ...] = ()
    """AXIS=LENGTH of an axis without coordinates, in physical units."""
    layout: tuple[str, ...] = ()
    """AXIS=periodic, vertex or cell, of an axis without coordinates."""
    origin: tuple[str, ...] = ()
    """AXIS=COORDINATE that becomes 0."""

    @property
    def asked(self) -> bool:
        """Return whether anything is to be imported."""
        return self != ImportFlags()


def described(flags: ImportFlags) -> Description:
    """Return the description of the TOML file, or the one that the flags make."""
    if (flags.import_pdebench is not None) + flags.import_npy + (flags.description is not None) != 1:
        raise ValueError("an import needs one of --import-pdebench, --import-npy and --description")
    if flags.description is not None:
        given = [f.name for f in fields(flags) if f.name != "description" and getattr(flags, f.name)]
        if given:
            raise ValueError(f"--description says all; leave out --{given[0].replace('_', '-')}, or write it there")
        return Description.read(flags.description)
    if not flags.channel:
        raise ValueError("--channel must say where every channel of the PDE is, such as --channel u=tensor or u=FILE.npy")
    return Description.parse({"channels": _channel_tables(flags), "axes": _axis_tables(flags)}, Path())


def _channel_tables(flags: ImportFlags) -> dict[str, dict[str, Any]]:
    """Return the flags of channels as a description's tables."""
    tables: dict[str, dict[str, Any]] = {}
    for name, where in _pairs("channel", flags.channel).items():
        file = {"file": where} if flags.import_pdebench is None else {"file": str(flags.import_pdebench), "dataset": where}
        tables[name] = {**file, "index": {}}
    for text in flags.axes:
        if "=" not in text:
            for table in tables.values():
                table["axes"] = _axis_names(text)
    for name, names in _pairs("axes", tuple(text for text in flags.axes if "=" in text)).items():
        tables[_known("axes", name, tables)]["axes"] = _axis_names(names)
    for name, position in _pairs("index", flags.index).items():
        channel, dot, axis = name.rpartition(".")
        chosen = [_known("index", channel, tables)] if dot else [c for c in tables if axis in tables[c].get("axes", ())]
        if not chosen:
            raise ValueError(f"--index {name}={position}: no channel has an axis {axis!r}; see --axes")
        for one in chosen:
            tables[one]["index"][axis] = _number("index", name, position, int)
    for key in ("scale", "offset"):
        for name, value in _pairs(key, getattr(flags, key)).items():
            tables[_known(key, name, tables)][key] = _number(key, name, value, float)
    for name, table in tables.items():
        if "axes" not in table:
            raise ValueError(f"--axes must name the axes of channel {name!r}'s array in order, such as sample,t,x")
    return tables


def _axis_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def _axis_tables(flags: ImportFlags) -> dict[str, dict[str, Any]]:
    """Return the flags of axes as a description's tables."""
    tables: dict[str, dict[str, Any]] = {}
    for key in ("stride", "coordinates", "extent", "layout", "origin"):
        for name, value in _pairs(key, getattr(flags, key)).items():
            is_number = key in ("extent", "origin")
            tables.setdefault(name, {})[key] = _number(key, name, value, float) if is_number else value
    return tables


def _pairs(flag: str, values: tuple[str, ...]) -> dict[str, str]:
    """Return the values of NAME=VALUE by name, each name once."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(f"--{flag} must be NAME=VALUE, got {text!r}")
        if name in found:
            raise ValueError(f"--{flag}: {name!r} is given twice")
        found[name] = value
    return found


def _known(flag: str, channel: str, tables: dict[str, dict[str, Any]]) -> str:
    if channel not in tables:
        raise ValueError(f"--{flag}: unknown channel {channel!r}; --channel names {', '.join(tables)}")
    return channel


def _number(flag: str, name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"--{flag} {name} must be {'an integer' if kind is int else 'a number'}, got {text!r}") from None
