"""``python -m tune.report SWEEP``: report a sweep by table, plots and page; ``--export`` a trial for train and generate."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from envs.common.checks import ConfigError, require
from envs.common.files import absolute
from pirf_ray.cli.errors import run_command
from pirf_ray.cli.flags import parse
from pirf_ray.cli.progress import print_table
from pirf_ray.evaluation.pages import rich_table
from tune.directory import load
from tune.export import export
from tune.page import trials_table, write_report
from tune.studies import best_first

TABLE_WIDTH = 170


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Report a sweep: report.html and plots in its directory. With --export, a trial's settings and checkpoint as well."""

    sweep: Annotated[Path, tyro.conf.Positional]
    """Directory of a sweep, finished or not."""
    export: str | None = None
    """best, or a trial's number: --out gets its run, for `generate --checkpoint` and `train --settings .../config.json`."""
    out: Path | None = None
    """Directory to export to; made, never overwritten."""
    storage: str | None = None
    """The study's storage URL, if it is not the sweep directory's own."""

    def __post_init__(self) -> None:
        require((self.export is None) == (self.out is None), "--export needs --out, and --out needs --export")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = parse(Arguments, argv=argv, prog="python -m tune.report", description=Arguments.__doc__)
    sweep = load(absolute(arguments.sweep))
    study = sweep.study(arguments.storage)
    ranked = best_first(study.study)
    if not ranked:
        raise ConfigError(f"{sweep.root}: no trial is finished yet")
    if arguments.export is not None and arguments.out is not None:
        out = absolute(arguments.out)
        number = export(sweep, study, arguments.export, out)
        print(f"trial {number}: {out}\n  python -m pirf_ray.generate --checkpoint {out} --out samples.h5")
        print(f"  python -m pirf_ray.train --settings {out / 'config.json'}")
    table = trials_table(study, ranked)
    print_table(rich_table(table), TABLE_WIDTH)
    print(f"report: {write_report(sweep, study, ranked, table)}")


if __name__ == "__main__":
    run_command(main)
