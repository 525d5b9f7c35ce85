"""``python -m pirf_ray.summary RUN ...``: print finished runs side by side, as a Markdown table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from envs.common.checks import ConfigError
from pirf_ray.cli.errors import run_command
from pirf_ray.cli.flags import parse
from pirf_ray.evaluation.tables import read_result, summary_markdown


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Print metrics of base and tuned models of finished runs (result.json), or of evaluations (``evaluate --out FILE``)."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories or result files."""


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.summary", description=Arguments.__doc__)
    if not arguments.runs:
        raise ConfigError("give at least one run directory or result file")
    print(summary_markdown([read_result(path) for path in arguments.runs]))


if __name__ == "__main__":
    run_command(main)
