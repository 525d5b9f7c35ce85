"""``python -m pirf_ray.data``: solve a PDE and write the samples to HDF5, import other codes' samples, or validate files."""

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import h5py

from envs import datasets
from envs.data_import import ImportedFields, import_fields, suspicion
from envs.import_description import Description
from envs.pdes import PDE, make_pde
from pirf_ray.cli import check_env, parse, progress_bar, run_command

SOLVED_SAMPLES = 4096


@dataclass(frozen=True, kw_only=True)
class ImportFlags:
    """What is imported, channel by channel. NAME is a channel (u), or with the grid's flags an axis (x)."""

    import_pdebench: Path | None = None
    """HDF5 file of the layout of PDEBench to import; --channel names its datasets."""
    import_npy: bool = False
    """Import .npy arrays; --channel names files, or directories of a file a sample."""
    description: Path | None = None
    """TOML file that says all that the flags below say, for either kind (its layout: envs/import_description.py)."""
    channel: tuple[str, ...] = ()
    """CHANNEL=DATASET or CHANNEL=FILE.npy or CHANNEL=DIRECTORY, for every channel of the PDE, such as u=tensor."""
    axes: tuple[str, ...] = ()
    """The arrays' axes in order, such as sample,t,x, or CHANNEL=AXES where channels differ. A directory's have no sample."""
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
        return self != ImportFlags()


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Solve a PDE and write the samples to HDF5 (physical units), import them, or validate such files.

    Streams are disjoint by construction: the same seed gives other samples in "train", "validation" and "test". A writing
    that was stopped or killed keeps its chunks in OUT.partial; the same command goes on from there.
    """

    env: str = "Burgers-v0"
    """The PDE."""
    out: Path | None = None
    """File to write; never overwritten."""
    validate: tuple[Path, ...] = ()
    """Files to check instead: every violation is listed, exit code 2 if there is one."""
    resolution: int = 32
    """Rows and columns of the fields."""
    parameters: dict[str, float] = field(default_factory=dict)
    """Parameters of the PDE by name: --parameters reynolds 40."""
    num_samples: int | None = None
    """Samples to solve (default 4096), or to import (default all)."""
    seed: int = 0
    """Seed of the samples; sample i depends on seed, stream and i alone."""
    stream: str = "train"
    """Name of the random stream: train, validation, test or one of your own."""
    workers: int = 1
    """Processes that solve, a core each. They do not change the bits."""
    chunk_size: int = 0
    """Samples solved, held in memory and stored at a time; 0: 256, of imports 64."""
    overwrite_partial: bool = False
    """Start over where OUT.partial holds chunks of another request."""
    imports: ImportFlags = field(default_factory=ImportFlags)


def main(argv: list[str] | None = None) -> None:
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.data", description=Arguments.__doc__)
    env = check_env(arguments.env)
    if (arguments.out is None) == (not arguments.validate):
        raise ValueError("give one of --out (solve and write, or import) and --validate (check files)")
    if arguments.chunk_size < 0:
        raise ValueError(f"--chunk-size must be at least 1, or 0 for the default, got {arguments.chunk_size}")
    if arguments.validate:
        report(arguments.validate)
    elif arguments.out is not None:
        pde = make_pde(env, arguments.resolution, **arguments.parameters)
        floors = run_import(arguments, arguments.out, pde) if arguments.imports.asked else solve(arguments, arguments.out, pde)
        with h5py.File(arguments.out, "r") as file:
            print(f"{arguments.out}: {describe_file(file)}")
        for name, floor in floors.items():
            print(f"  residual floor, {name}: {floor:.3g}")
        warning = suspicion(pde, floors) if arguments.imports.asked else None
        if warning:
            print(f"warning: {warning}", file=sys.stderr)


def solve(arguments: Arguments, out: Path, pde: PDE) -> dict[str, float]:
    return datasets.write(
        out,
        pde,
        num_samples=SOLVED_SAMPLES if arguments.num_samples is None else arguments.num_samples,
        seed=arguments.seed,
        stream=arguments.stream,
        progress=progress_bar("solving"),
        workers=arguments.workers,
        overwrite_partial=arguments.overwrite_partial,
        **chunk_size(arguments),
    )


def run_import(arguments: Arguments, out: Path, pde: PDE) -> dict[str, float]:
    for name in ("seed", "stream", "workers"):
        if getattr(arguments, name) != getattr(Arguments, name):
            raise ValueError(f"--{name}: imported data have none; leave it out")
    return import_fields(
        out,
        ImportedFields(pde, described(arguments.imports)),
        num_samples=arguments.num_samples,
        progress=progress_bar("importing"),
        hashing=progress_bar("hashing (MiB)"),
        overwrite_partial=arguments.overwrite_partial,
        **chunk_size(arguments),
    )


def chunk_size(arguments: Arguments) -> dict[str, int]:
    return {"chunk_size": arguments.chunk_size} if arguments.chunk_size else {}


def described(flags: ImportFlags) -> Description:
    """The description of the TOML file, or the one that the flags make."""
    if (flags.import_pdebench is not None) + flags.import_npy + (flags.description is not None) != 1:
        raise ValueError("an import needs one of --import-pdebench, --import-npy and --description")
    if flags.description is not None:
        given = [f.name for f in fields(flags) if f.name != "description" and getattr(flags, f.name)]
        if given:
            raise ValueError(f"--description says all; leave out --{given[0].replace('_', '-')}, or write it there")
        return Description.read(flags.description)
    if not flags.channel:
        raise ValueError("--channel must say where every channel of the PDE is, such as --channel u=tensor or u=FILE.npy")
    return Description.parse({"channels": channel_tables(flags), "axes": axis_tables(flags)}, Path())


def channel_tables(flags: ImportFlags) -> dict[str, dict[str, Any]]:
    """The flags of channels as a description's tables."""
    tables: dict[str, dict[str, Any]] = {}
    for name, where in pairs("channel", flags.channel).items():
        file = {"file": where} if flags.import_pdebench is None else {"file": str(flags.import_pdebench), "dataset": where}
        tables[name] = {**file, "index": {}}
    for text in flags.axes:
        if "=" not in text:
            for table in tables.values():
                table["axes"] = axis_names(text)
    for name, names in pairs("axes", tuple(text for text in flags.axes if "=" in text)).items():
        tables[known("axes", name, tables)]["axes"] = axis_names(names)
    for name, position in pairs("index", flags.index).items():
        channel, dot, axis = name.rpartition(".")
        chosen = [known("index", channel, tables)] if dot else [c for c in tables if axis in tables[c].get("axes", ())]
        if not chosen:
            raise ValueError(f"--index {name}={position}: no channel has an axis {axis!r}; see --axes")
        for one in chosen:
            tables[one]["index"][axis] = number("index", name, position, int)
    for key in ("scale", "offset"):
        for name, value in pairs(key, getattr(flags, key)).items():
            tables[known(key, name, tables)][key] = number(key, name, value, float)
    for name, table in tables.items():
        if "axes" not in table:
            raise ValueError(f"--axes must name the axes of channel {name!r}'s array in order, such as sample,t,x")
    return tables


def axis_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",")]


def axis_tables(flags: ImportFlags) -> dict[str, dict[str, Any]]:
    """The flags of axes as a description's tables."""
    tables: dict[str, dict[str, Any]] = {}
    for key in ("stride", "coordinates", "extent", "layout", "origin"):
        for name, value in pairs(key, getattr(flags, key)).items():
            is_number = key in ("extent", "origin")
            tables.setdefault(name, {})[key] = number(key, name, value, float) if is_number else value
    return tables


def pairs(flag: str, values: tuple[str, ...]) -> dict[str, str]:
    """NAME=VALUE, each name once."""
    found: dict[str, str] = {}
    for text in values:
        name, equals, value = text.partition("=")
        if not (name and equals and value):
            raise ValueError(f"--{flag} must be NAME=VALUE, got {text!r}")
        if name in found:
            raise ValueError(f"--{flag}: {name!r} is given twice")
        found[name] = value
    return found


def known(flag: str, channel: str, tables: dict[str, dict[str, Any]]) -> str:
    if channel not in tables:
        raise ValueError(f"--{flag}: unknown channel {channel!r}; --channel names {', '.join(tables)}")
    return channel


def number(flag: str, name: str, text: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise ValueError(f"--{flag} {name} must be {'an integer' if kind is int else 'a number'}, got {text!r}") from None


def report(paths: tuple[Path, ...]) -> None:
    """Print what each valid file holds and each violation of the others, and raise InvalidDataError that lists those."""
    found = []
    for path in paths:
        problems = datasets.violations(path)
        found += problems
        if not problems:
            with h5py.File(path, "r") as file:
                print(f"{path}: valid; {describe_file(file)}")
                print(f"  stream {file.attrs['stream']}, seed {file.attrs['seed']}; residual floors {file.attrs['floors']}")
    if found:
        raise datasets.InvalidDataError("; ".join(found))


def describe_file(file: h5py.File) -> str:
    n = file.attrs["resolution"]
    return f"{len(file['fields'])} samples of {file.attrs['env_id']} at {n}x{n}"


if __name__ == "__main__":
    run_command(main)
