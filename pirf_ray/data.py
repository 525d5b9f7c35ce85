"""``python -m pirf_ray.data``: solve a PDE and write the samples to HDF5, or validate such a file."""

from dataclasses import dataclass
from pathlib import Path

import h5py

from envs import datasets
from envs.pdes import make_pde
from pirf_ray.cli import check_env, parse, progress_bar, run_command


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Solve a PDE and write the samples to HDF5 (physical units), or validate such a file.

    Streams are disjoint by construction: the same seed gives other samples in "train", "validation" and "test".
    """

    env: str = "Burgers-v0"
    """The PDE."""
    out: Path | None = None
    """File to write; never overwritten."""
    validate: Path | None = None
    """File to check instead: every violation is listed, exit code 2 if there is one."""
    resolution: int = 32
    """Rows and columns of the fields."""
    num_samples: int = 4096
    """Samples to solve."""
    seed: int = 0
    """Seed of the samples; sample i depends on seed, stream and i alone."""
    stream: str = "train"
    """Name of the random stream: train, validation, test or one of your own."""


def main(argv: list[str] | None = None) -> None:
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.data", description=Arguments.__doc__)
    check_env(arguments.env)
    if (arguments.out is None) == (arguments.validate is None):
        raise ValueError("give one of --out (solve and write) and --validate (check a file)")
    if arguments.validate is not None:
        report(arguments.validate)
    elif arguments.out is not None:
        pde = make_pde(arguments.env, arguments.resolution)
        floors = datasets.write(
            arguments.out,
            pde,
            num_samples=arguments.num_samples,
            seed=arguments.seed,
            stream=arguments.stream,
            progress=progress_bar("solving"),
        )
        print(
            f"{arguments.out}: {arguments.num_samples} samples of {pde.env_id} at {arguments.resolution}x{arguments.resolution}"
        )
        for name, floor in floors.items():
            print(f"  residual floor, {name}: {floor:.3g}")


def report(path: Path) -> None:
    """Print what a valid file holds; InvalidDataError lists the violations of another."""
    datasets.validate(path)
    with h5py.File(path, "r") as file:
        a = file.attrs
        print(f"{path}: valid; {len(file['fields'])} samples of {a['env_id']} at {a['resolution']}x{a['resolution']}")
        print(f"  stream {a['stream']}, seed {a['seed']}; residual floors {a['floors']}")


if __name__ == "__main__":
    run_command(main)
