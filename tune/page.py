"""The report of a sweep: a table of the best trials, plots, one HTML page."""

import warnings
from functools import partial
from pathlib import Path

import optuna
from optuna.trial import FrozenTrial, TrialState

from envs.common.files import read_json
from pirf_ray.evaluation.pages import Table, html_table, paragraph, plot, write_page
from tune.directory import Sweep
from tune.goals import VALUES
from tune.heldout import TEST, Comparison, heldout_table
from tune.plots import draw_frontier, draw_importance, draw_parallel
from tune.studies import SweepStudy, metrics_of
from tune.trial_log import short

SHOWN = 10
"""Trials in the table."""
LEAST_TRIALS = 4
"""Fewest finished trials whose shares of importance mean something."""


def write_report(sweep: Sweep, study: SweepStudy, ranked: list[FrozenTrial], table: Table) -> Path:
    """Draw the plots and write the page, in the sweep's directory; return the page. ``ranked``: complete trials, best first."""
    best, own = ranked[0].number, study.own()
    preset = own[0].number if own else None
    trials = study.study.get_trials(deepcopy=False)
    parts = [
        f"<h1>Sweep of {sweep.config.env}</h1>",
        paragraph(_summary(sweep, study, trials, best, preset)),
        paragraph("Searched: " + "; ".join(f"{name} {text}" for name, text in sweep.space.texts().items()) + "."),
        html_table(table),
    ]
    if (sweep.root / TEST).is_file():
        parts.append(html_table(heldout_table(Comparison.from_json(read_json(sweep.root / TEST)))))

    frontier, parallel = sweep.root / "frontier.png", sweep.root / "parallel.png"
    limit = study.limits.guard.guard_energy if study.goal == "residual" else None
    draw_frontier(frontier, ranked, best=best, preset=preset, limit=limit)
    draw_parallel(parallel, trials, study.space, best=best, value_name=VALUES[study.goal][0])
    parts.append(plot("Residual against fidelity: each finished trial by its number.", frontier))
    parts.append(plot("Parallel coordinates: each line is a trial.", parallel))
    parts.append(_importance_part(sweep, study, len(ranked)))
    page = sweep.root / "report.html"
    write_page(page, f"sweep of {sweep.config.env}", parts)
    return page


def _summary(sweep: Sweep, study: SweepStudy, trials: list[FrozenTrial], best: int, preset: int | None) -> str:
    counts = {state: sum(t.state == state for t in trials) for state in TrialState}
    states = ", ".join(f"{count} {state.name.lower()}" for state, count in counts.items() if count)
    first = "" if preset is None else f" Preset: trial {preset}."
    return f"Preset {sweep.arguments.preset}, goal {study.goal}. Trials: {states}. Best: trial {best}.{first}"


def _importance_part(sweep: Sweep, study: SweepStudy, finished: int) -> str:
    """Return the HTML of the plot of importance, or of the reason why there is none."""
    shares = importance(study.study, VALUES[study.goal])
    if not shares:
        return paragraph(f"Importance needs at least {LEAST_TRIALS} finished trials whose values differ.")
    path = sweep.root / "importance.png"
    draw_importance(path, shares, finished)
    return plot(
        "Share of each parameter in how much the values of finished trials differ (PED-ANOVA); few trials give a hint only.", path
    )


def importance(study: optuna.Study, values: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Return shares by parameter for each value that is minimized; empty if too few trials are finished or all are equal."""
    complete = [t for t in study.get_trials(deepcopy=False) if t.state == TrialState.COMPLETE]
    found: dict[str, dict[str, float]] = {}
    for i, value in enumerate(values):
        if len(complete) < LEAST_TRIALS or len({t.values[i] for t in complete}) < 2:
            return {}
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        with warnings.catch_warnings():
            # It warns that it takes low values for good, which they are, and of few trials, which the page says too.
            warnings.simplefilter("ignore", UserWarning)
            found[value] = optuna.importance.get_param_importances(study, evaluator=evaluator, target=partial(_value_of, i))
    return found


def _value_of(i: int, trial: FrozenTrial) -> float:
    value: float = trial.values[i]
    return value


def trials_table(study: SweepStudy, ranked: list[FrozenTrial]) -> Table:
    """Return the table of the best trials. ``ranked``: complete trials, best first."""
    names = study.space.searched()
    rows = []
    for trial in ranked[:SHOWN]:
        metrics = metrics_of(trial)
        rows.append(
            [
                str(trial.number),
                *(short(trial.params.get(name)) for name in names),
                f"{metrics.residual:.4g}",
                f"{metrics.residual_ratio:.3g}",
                f"{metrics.energy_ratio:.3f}",
                f"{metrics.resolve:.3g}",
                ", ".join(name for name, value in trial.constraints.items() if value > 0) or "inside",
            ]
        )
    return Table(
        title=f"The best {len(rows)} of {len(ranked)} finished trials",
        columns=["trial", *names, "residual", "/ base", "energy / base", "re-solve", "limits"],
        rows=rows,
        bold=frozenset((0, j) for j in range(2)),
    )
