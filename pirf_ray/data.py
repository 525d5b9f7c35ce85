"""``python -m pirf_ray.data``: solve a PDE and write the samples to HDF5, import other codes' samples, or validate files."""

from envs.pdes import make_pde
from pirf_ray.cli.data_files import DataArguments, make_file, validate_files
from pirf_ray.cli.errors import run_command
from pirf_ray.cli.flags import check_env, parse


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = parse(DataArguments, argv=argv, prog="python -m pirf_ray.data", description=DataArguments.__doc__)
    env = check_env(arguments.env)
    if arguments.out is None:
        validate_files(arguments.validate)
        return
    make_file(arguments, arguments.out, make_pde(env, arguments.resolution, **arguments.parameters))


if __name__ == "__main__":
    run_command(main)
