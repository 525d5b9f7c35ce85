"""``python -m pirf_ray.evaluate``: compare base, tuned and real fields on seeds that no training has seen."""

from pirf_ray.cli.errors import run_command
from pirf_ray.cli.evaluation import EvaluateArguments, evaluate
from pirf_ray.cli.flags import parse


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    description = EvaluateArguments.__doc__
    evaluate(parse(EvaluateArguments, argv=argv, prog="python -m pirf_ray.evaluate", description=description))


if __name__ == "__main__":
    run_command(main)
