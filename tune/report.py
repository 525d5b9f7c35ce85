"""``python -m tune.report SWEEP``: best trials, frontier, importance, parallel coordinates; ``--export`` for train and generate."""

import shutil
import warnings
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import optuna
import tyro
from optuna.trial import FrozenTrial, TrialState

from pirf_ray.checkpoints import read_json, staged_directory
from pirf_ray.cli import parse, print_table, run_command
from pirf_ray.config import ConfigError
from pirf_ray.evaluation.pages import Table, html_table, paragraph, picture, rich_table, write_page
from pirf_ray.runs import BEST, RunExistsError
from pirf_ray.training import absolute
from tune.directory import Sweep, load
from tune.goals import VALUES
from tune.heldout import TEST, heldout_table
from tune.pictures import draw_frontier, draw_importance, draw_parallel
from tune.studies import FIGURES, SweepStudy, best_first

SHOWN = 10
TABLE_WIDTH = 170
EXPORTED = ("config.json", "outcome.json", "result.json", "report.png")
LEAST_TRIALS = 4
"""Finished ones, under which shares of importance say nothing."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Report a sweep: report.html and pictures in its directory. With --export, a trial's settings and checkpoint as well."""

    sweep: Annotated[Path, tyro.conf.Positional]
    """Directory of a sweep, finished or not."""
    export: str | None = None
    """best, or a trial's number: --out gets its run, for `generate --checkpoint` and `train --settings .../config.json`."""
    out: Path | None = None
    """Directory to export to; made, never overwritten."""
    storage: str | None = None
    """The study's storage URL, where it is not the sweep directory's own."""


def main(argv: list[str] | None = None) -> None:
    arguments = parse(Arguments, argv=argv, prog="python -m tune.report", description=Arguments.__doc__)
    if (arguments.export is None) != (arguments.out is None):
        raise ConfigError("--export needs --out, and --out --export")
    sweep = load(absolute(arguments.sweep))
    study = sweep.study(arguments.storage)
    ranked = best_first(study.study)
    if not ranked:
        raise ConfigError(f"{sweep.root}: no trial is finished yet")
    if arguments.export is not None and arguments.out is not None:
        export(sweep, study, arguments.export, absolute(arguments.out))
    table = trials_table(study, ranked)
    print_table(rich_table(table), TABLE_WIDTH)
    print(f"report: {write_report(sweep, study, ranked, table)}")


def write_report(sweep: Sweep, study: SweepStudy, ranked: list[FrozenTrial], table: Table) -> Path:
    """Draw and write everything into the sweep's directory; returns the page."""
    best, preset = ranked[0].number, study.own()[0].number
    trials = study.study.get_trials(deepcopy=False)
    pictures = {name: sweep.root / f"{name}.png" for name in ("frontier", "parallel", "importance")}
    limit = study.limits.guard.guard_energy if study.goal == "residual" else None
    draw_frontier(pictures["frontier"], ranked, best=best, preset=preset, limit=limit)
    draw_parallel(pictures["parallel"], trials, study.space, best=best, value_name=VALUES[study.goal][0])
    shares = importance(study.study, VALUES[study.goal])
    if shares:
        draw_importance(pictures["importance"], shares, len(ranked))
    counts = {state: sum(t.state == state for t in trials) for state in TrialState}
    told = ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items() if count)
    parts = [
        f"<h1>Sweep of {sweep.config.env}</h1>",
        paragraph(
            f"Preset {sweep.arguments.preset}, goal {study.goal}. Trials: {told}. Best: trial {best}; the preset: {preset}."
        ),
        paragraph("Searched: " + "; ".join(f"{name} {text}" for name, text in sweep.space.texts().items()) + "."),
        html_table(table),
    ]
    if (sweep.root / TEST).is_file():
        parts.append(html_table(heldout_table(read_json(sweep.root / TEST))))
    parts += [picture("Residual against fidelity: each finished trial by its number.", pictures["frontier"])]
    parts += [picture("Parallel coordinates: each line is a trial.", pictures["parallel"])]
    if shares:
        caption = "Share of each parameter in how much the values of finished trials differ (PED-ANOVA): of few trials, a hint."
        parts.append(picture(caption, pictures["importance"]))
    else:
        parts.append(paragraph(f"Importance needs at least {LEAST_TRIALS} finished trials whose values differ."))
    page = sweep.root / "report.html"
    write_page(page, f"sweep of {sweep.config.env}", parts)
    return page


def importance(study: optuna.Study, values: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Shares by parameter for each value that is minimized; empty where too few trials say anything."""
    complete = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    found: dict[str, dict[str, float]] = {}
    for i, value in enumerate(values):
        if len(complete) < LEAST_TRIALS or len({t.values[i] for t in complete}) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        target = partial(_value_of, i)
        with warnings.catch_warnings():
            # That low is good, which it assumes, is so; that few trials are a hint is in the report.
            warnings.simplefilter("ignore", UserWarning)
            found[value] = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
    return found


def _value_of(i: int, trial: FrozenTrial) -> float:
    return trial.values[i]


def trials_table(study: SweepStudy, ranked: list[FrozenTrial]) -> Table:
    """The best trials, then what the pictures need no table for."""
    names = [name for name, spec in study.space.specs.items() if not spec.fixed]
    rows = []
    for trial in ranked[:SHOWN]:
        f = {name: float(value) if name != "below_floor" else value for name, value in trial.user_attrs[FIGURES].items()}
        outside = [name for name, value in trial.constraints.items() if value > 0]
        params = [_text(trial.params.get(name)) for name in names]
        figures = [f"{f['residual']:.4g}", f"{f['residual'] / f['base_residual']:.3g}", f"{f['energy_ratio']:.3f}"]
        rows.append([str(trial.number), *params, *figures, f"{f['resolve']:.3g}", ", ".join(outside) or "inside"])
    return Table(
        title=f"The best {len(rows)} of {len(ranked)} finished trials",
        columns=["trial", *names, "residual", "/ base", "energy / base", "re-solve", "limits"],
        rows=rows,
        bold=frozenset((0, j) for j in range(2)),
    )


def export(sweep: Sweep, study: SweepStudy, which: str, out: Path) -> None:
    """Copy a trial's run: settings, base model, kept checkpoint, figures. ConfigError names what cannot be exported."""
    finished = {str(t.number): t.number for t in best_first(study.study)}
    number = next(iter(finished.values())) if which == "best" else finished.get(which)
    if number is None:
        raise ConfigError(f"--export {which}: not a finished trial; there are {', '.join(finished)}")
    if out.exists():
        raise RunExistsError(f"--out {out} exists; nothing is ever overwritten")
    run = sweep.run(number)
    if not (run / "checkpoints" / BEST).is_dir():
        raise ConfigError(f"--export {which}: trial {number} has no run in {sweep.trials}: another sweep of this study made it")
    out.parent.mkdir(parents=True, exist_ok=True)
    with staged_directory(out) as staging:
        shutil.copytree(run / "base", staging / "base")
        shutil.copytree(run / "checkpoints" / BEST, staging / "checkpoints" / BEST)
        for name in EXPORTED:
            shutil.copyfile(run / name, staging / name)
    print(f"trial {number}: {out}\n  python -m pirf_ray.generate --checkpoint {out} --out samples.h5")
    print(f"  python -m pirf_ray.train --settings {out / 'config.json'}")


def _text(value: object) -> str:
    return "-" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    run_command(main)
