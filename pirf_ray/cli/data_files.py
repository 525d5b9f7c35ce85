"""Flags of ``data``, and the files that they mean: solved, imported or validated."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import h5py

from envs.common.checks import ConfigError, require
from envs.data import datasets
from envs.data.imports import FLOOR_SAMPLES, ImportedFields, import_fields, suspicion
from envs.pdes import PDE
from envs.pdes.base import require as require_part
from pirf_ray.cli.imports import ImportFlags, described
from pirf_ray.cli.progress import progress_bar

SOLVED_SAMPLES = 4096
IMPORT_STREAM = "import"
"""Stream of our own fields that imported fields are compared with."""


@dataclass(frozen=True, kw_only=True)
class DataArguments:
    """Solve a PDE and write the samples to HDF5 (physical units), import them, or validate such files.

    Streams are disjoint by construction: the same seed gives other samples in "train", "validation" and "test". A writing
    that was stopped or killed keeps its chunks in OUT.partial; the same command continues from there.
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
    """Samples to solve (default 4096, or all stored ones if there are fewer), or to import (default all)."""
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

    def __post_init__(self) -> None:
        require(
            (self.out is None) == bool(self.validate),
            "give one of --out (solve and write, or import) and --validate (check files)",
        )
        require(self.chunk_size >= 0, f"--chunk-size must be at least 1, or 0 for the default, got {self.chunk_size}")

    @property
    def chunks(self) -> dict[str, int]:
        """Return the size of a chunk, if it is not the default."""
        return {"chunk_size": self.chunk_size} if self.chunk_size else {}


def make_file(arguments: DataArguments, out: Path, pde: PDE) -> None:
    """Solve or import the samples, write them, and print what the file holds."""
    floors = _imported(arguments, out, pde) if arguments.imports.asked else _solved(arguments, out, pde)
    with h5py.File(out, "r") as file:
        print(f"{out}: {_contents(file)}")
    for name, floor in floors.items():
        print(f"  residual floor, {name}: {floor:.3g}")
    warning = suspicion(pde, floors) if arguments.imports.asked and _comparable(pde) else None
    if warning:
        print(f"warning: {warning}", file=sys.stderr)


def _comparable(pde: PDE) -> bool:
    """Return whether residuals of imported fields can be compared with residuals of the PDE's own fields."""
    if not (pde.provides("operators") and pde.provides("solve")):
        return False
    available = pde.available(IMPORT_STREAM)
    return available is None or available >= FLOOR_SAMPLES


def _solved(arguments: DataArguments, out: Path, pde: PDE) -> dict[str, float]:
    require_part(pde, "solve", "--out", "import the fields of another code: --import-npy, --import-pdebench or --description")
    return datasets.write(
        out,
        pde,
        num_samples=solved_count(pde, arguments.stream, arguments.num_samples, "--num-samples", SOLVED_SAMPLES),
        seed=arguments.seed,
        stream=arguments.stream,
        progress=progress_bar("solving"),
        workers=arguments.workers,
        overwrite_partial=arguments.overwrite_partial,
        **arguments.chunks,
    )


def solved_count(pde: PDE, stream: str, asked: int | None, flag: str, default: int) -> int:
    """Return the number of samples to solve: the asked one, or the default, or all stored ones if there are fewer.

    ConfigError names the flag if more samples are asked for than are stored.
    """
    available = pde.available(stream)
    if available is None:
        return default if asked is None else asked
    require(
        asked is None or asked <= available,
        f"{flag} must be at most {available}, the stored samples of {pde.env_id} for the stream {stream!r}, got {asked}",
    )
    return min(default, available) if asked is None else asked


def _imported(arguments: DataArguments, out: Path, pde: PDE) -> dict[str, float]:
    for name in ("seed", "stream", "workers"):
        if getattr(arguments, name) != getattr(DataArguments, name):
            raise ConfigError(f"--{name}: imported data have none; leave it out")
    return import_fields(
        out,
        ImportedFields(pde, described(arguments.imports)),
        num_samples=arguments.num_samples,
        progress=progress_bar("importing"),
        hashing=progress_bar("hashing (MiB)"),
        overwrite_partial=arguments.overwrite_partial,
        **arguments.chunks,
    )


def validate_files(paths: tuple[Path, ...]) -> None:
    """Print what each valid file holds; raise InvalidDataError that lists the violations of the others."""
    found = []
    for path in paths:
        problems = datasets.violations(path)
        found += problems
        if not problems:
            with h5py.File(path, "r") as file:
                print(f"{path}: valid; {_contents(file)}")
                print(f"  stream {file.attrs['stream']}, seed {file.attrs['seed']}; residual floors {file.attrs['floors']}")
    if found:
        raise datasets.InvalidDataError("; ".join(found))


def _contents(file: h5py.File) -> str:
    n = file.attrs["resolution"]
    return f"{len(file['fields'])} samples of {file.attrs['env_id']} at {n}x{n}"
