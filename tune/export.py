"""Export of a trial: its run, without what only continuing it needs."""

import shutil
from pathlib import Path

from envs.common.checks import ConfigError
from envs.common.files import DirectoryTakenError, staged_directory
from pirf_ray.training.runs import BEST
from tune.directory import Sweep
from tune.studies import SweepStudy, best_first

EXPORTED = ("config.json", "outcome.json", "result.json", "report.png")


def export(sweep: Sweep, study: SweepStudy, which: str, out: Path) -> int:
    """Copy settings, base model, kept checkpoint and metrics of a trial's run to ``out``; return the trial's number.

    ``which``: best, or a number. ConfigError names what cannot be exported.
    """
    finished = {str(t.number): t.number for t in best_first(study.study)}
    number = next(iter(finished.values())) if which == "best" else finished.get(which)
    if number is None:
        raise ConfigError(f"--export {which}: not a finished trial; there are {', '.join(finished)}")
    if out.exists():
        raise DirectoryTakenError(f"--out {out} exists; nothing is ever overwritten")
    run = sweep.run(number)
    if not (run / "checkpoints" / BEST).is_dir():
        raise ConfigError(f"--export {which}: trial {number} has no run in {sweep.trials}: another sweep of this study made it")
    with staged_directory(out) as staging:
        shutil.copytree(run / "base", staging / "base")
        shutil.copytree(run / "checkpoints" / BEST, staging / "checkpoints" / BEST)
        for name in EXPORTED:
            shutil.copyfile(run / name, staging / name)
    return number
