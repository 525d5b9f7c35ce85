"""The tables of results: one evaluation on the terminal, several runs in Markdown."""

import math
from collections.abc import Callable
from pathlib import Path

from rich.table import Table
from rich.text import Text

from envs.common.files import FileFormatError, read_json
from pirf_ray.diffusion.model import BASE, BASE_FINISHED, TUNED
from pirf_ray.metrics.base import REWARD
from pirf_ray.metrics.results import DATA, Estimate, EvaluationResult, SetMetrics
from pirf_ray.training.runs import RunPaths

TABLE_WIDTH = 132
"""Columns of a terminal that the table of four sets needs."""
FIRST = (BASE, BASE_FINISHED, TUNED)
"""First columns of a table, in order."""
TITLES = {BASE_FINISHED: "base, corrected", DATA: "real data"}
"""Titles of columns that are not the name of their set."""
Cell = Callable[[SetMetrics], Text]
"""Function from a set's metrics to the text of a cell."""
Value = Callable[[SetMetrics], float | None]
"""Function from a set's metrics to a number. None if the set does not have it."""
NOTHING = "-"
"""Text of a number that a set does not have."""


def result_table(result: EvaluationResult) -> Table:
    """Return a table with a column per set, real data last. 95% intervals stand under the values, faults are red."""
    table = Table(
        title=f"{result.env_id} at {result.resolution}²: {result.num_samples} samples of each, "
        f"against {result.num_real} held-out fields",
        caption="; ".join(_caption(result)),
    )
    first = [name for name in FIRST if name in result.sets]
    columns = first + [name for name in result.sets if name not in (*first, DATA)] + [DATA]
    corrected = {TUNED: "tuned, corrected"} if result.sampler and result.sampler.corrections else {}
    table.add_column("metric", no_wrap=True)
    for name in columns:
        table.add_column((TITLES | corrected).get(name, name), justify="right", no_wrap=True)
    for section in (_rewards(result), _residuals(result), _physics(result), _fidelity(result), _others(result)):
        for label, cell in section:
            table.add_row(label, *(cell(result[name]) for name in columns))
        table.add_section()
    return table


def _caption(result: EvaluationResult) -> list[str]:
    """Return the meanings of the table's rows and columns."""
    with_intervals = result.operators or result.conditions or result.data.resolve
    parts = ["second line: 95% bootstrap interval"] if with_intervals else []
    if result.operators:
        parts += [
            "over floor: mean / mean of real data",
            "as noise: the white noise (of each channel's std) that gives real data this residual",
        ]
    return [*parts, "real data: a second held-out set"]


def _rewards(result: EvaluationResult) -> list[tuple[str, Cell]]:
    return [("mean reward", _named(REWARD))] if REWARD in result.data.named else []


def _others(result: EvaluationResult) -> list[tuple[str, Cell]]:
    return [(name, _named(name)) for name in result.data.named if name != REWARD]


def _named(name: str) -> Cell:
    return lambda metrics: _cell(metrics, metrics.named.get(name))


def _residuals(result: EvaluationResult) -> list[tuple[str, Cell]]:
    rows: list[tuple[str, Cell]] = []
    for name in result.operators:
        rows.append((f"residual {name}{_role(result, name)}", _residual(name, "mean")))
        if name == result.rewarded_operator:
            rows.append(("  median", _residual(name, "median")))
        rows += [("  over floor", _residual(name, "over_floor")), ("  as noise", _residual(name, "noise_equivalent"))]
    return rows


def _physics(result: EvaluationResult) -> list[tuple[str, Cell]]:
    rows = [(name.replace("_", " "), _condition(name)) for name in result.conditions]
    if result.data.resolve is not None:
        rows.append(("re-solve error, median", _resolve))
    if result.data.resolve_trivial is not None:
        rows.append(("  trivial competitor", lambda m: _cell(m, m.resolve_trivial)))
    return rows


def _resolve(metrics: SetMetrics) -> Text:
    return _cell(metrics, metrics.resolve_median, metrics.resolve.median_interval if metrics.resolve else None)


def _fidelity(result: EvaluationResult) -> list[tuple[str, Cell]]:
    known = result.data.fidelity.marginal_energy_distance is not None
    marginal = "  of the known marginal"
    rows: list[tuple[str, Cell]] = [
        ("amplitude ratio", lambda m: _cell(m, m.fidelity.amplitude_ratio)),
        ("energy distance", lambda m: _cell(m, m.fidelity.energy_distance)),
        ("  over real data's", lambda m: _cell(m, m.fidelity.energy_distance_ratio_to_data)),
        ("  squared, unbiased", lambda m: _cell(m, m.fidelity.energy_distance_unbiased)),
        (marginal, lambda m: _cell(m, m.fidelity.marginal_energy_distance)),
        ("log spectrum error (decades)", lambda m: _cell(m, m.fidelity.log_spectrum_error)),
        ("high-wavenumber energy ratio", lambda m: _cell(m, m.fidelity.high_wavenumber_ratio)),
        ("diversity ratio", lambda m: _cell(m, m.fidelity.diversity_ratio)),
    ]
    return [(label, cell) for label, cell in rows if known or label != marginal]


def _role(result: EvaluationResult, operator: str) -> str:
    if operator == result.rewarded_operator:
        return " (rewarded)"
    return " (not rewarded)" if operator == result.unrewarded_operator else ""


def _residual(operator: str, statistic: str) -> Cell:
    """Return the cell of a statistic of an operator's residual. A residual below the floor is red."""

    def cell(metrics: SetMetrics) -> Text:
        residual = metrics.residuals[operator]
        value = getattr(residual, statistic)
        made = _cell(metrics, value, getattr(residual, f"{statistic}_interval", None))
        if math.isfinite(value) and residual.below_floor:
            lines = made.plain.split("\n", 1)
            made = Text(lines[0] + ("" if statistic == "median" else " below floor"), style="bold red")
            if len(lines) > 1:
                made.append("\n" + lines[1], style="dim")
        return made

    return cell


def _condition(name: str) -> Cell:
    def cell(metrics: SetMetrics) -> Text:
        estimate: Estimate = metrics.conditions[name]
        return _cell(metrics, estimate.mean, estimate.mean_interval)

    return cell


def _cell(metrics: SetMetrics, value: float | None, interval: tuple[float, float] | None = None) -> Text:
    if value is None:
        return Text(NOTHING)
    cell = Text(f"{value:.4g}")
    if not math.isfinite(value):
        cell.append(f" {metrics.num_nonfinite} not finite" if metrics.num_nonfinite else " not finite")
        cell.stylize("red")
    if interval is not None:
        cell.append(f"\n{interval[0]:.3g} to {interval[1]:.3g}", style="dim")
    return cell


# --- several runs, in Markdown ---

SUMMARY_COLUMNS = (
    "PDE",
    "NFE",
    "`consistent` residual (floor)",
    "ratio",
    "as white noise, % of std",
    "unrewarded check (real data)",
    "conditions",
    "re-solve error (real data)",
    "amplitude over real data's",
    "energy distance, tuned / base",
    "log spectrum error, decades (real data)",
)
REWARD_COLUMN = "mean reward (real data)"
"""Last column, if a result has a mean reward."""
SUMMARY_LEGEND = (
    "Arrows lead from the base model to the tuned model; "
    "if the tuned model's samples are corrected, the base model with the same corrections stands between them."
)


def read_result(path: Path) -> EvaluationResult:
    """Read the result of a run directory or of a result file. FileFormatError if it holds no tuned model."""
    file = RunPaths(root=path).result if path.is_dir() else path
    data = read_json(file)
    missing = [name for name in (BASE, TUNED, DATA) if name not in data]
    if missing:
        raise FileFormatError(f"{file}: holds no metrics of {', '.join(missing)}")
    try:
        return EvaluationResult.from_json(data)
    except (KeyError, TypeError) as error:
        raise FileFormatError(f"{file}: not the result of an evaluation ({error})") from None


def summary_markdown(results: list[EvaluationResult]) -> str:
    """Return the legend and the Markdown table of several results, one result per row."""
    head, rows = list(SUMMARY_COLUMNS), [summary_row(result) for result in results]
    if any(REWARD in result.data.named for result in results):
        head.append(REWARD_COLUMN)
        rows = [[*row, _led(result, lambda m: m.named.get(REWARD))] for row, result in zip(rows, results, strict=True)]
    lines = [head, ["---"] * len(head), *rows]
    return SUMMARY_LEGEND + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary_row(result: EvaluationResult) -> list[str]:
    """Return the cells of one result. Arrows lead from set to set, and real data stand in brackets.

    A dash stands for what the PDE leaves out.
    """
    return [
        f"{result.env_id.removesuffix('-v0')} {result.resolution}²",
        str(result.sampler.nfe) if result.sampler else NOTHING,
        *_residual_cells(result),
        _unrewarded_cell(result),
        ", ".join(f"{name} {_arrows(result, _violation(name), '.2g')}" for name in result.conditions) or "none",
        _led(result, lambda m: m.resolve_median),
        _arrows(result, lambda m: m.fidelity.amplitude_ratio, ".3f"),
        f"{result[TUNED].fidelity.energy_distance / result[BASE].fidelity.energy_distance:.3f}",
        _led(result, lambda m: m.fidelity.log_spectrum_error),
    ]


def _residual_cells(result: EvaluationResult) -> list[str]:
    """Return the rewarded operator's residual, its ratio and its noise."""
    operator = result.rewarded_operator
    if not operator:
        return [NOTHING] * 3
    base, tuned = result[BASE].residuals[operator], result[TUNED].residuals[operator]
    floor = " below floor!" if tuned.below_floor else ""
    return [
        _led(result, lambda m: m.residuals[operator].mean) + floor,
        f"1/{base.mean / tuned.mean:.3g}",
        _arrows(result, lambda m: 100 * m.residuals[operator].noise_equivalent, ".2g"),
    ]


def _unrewarded_cell(result: EvaluationResult) -> str:
    name = result.unrewarded_operator
    return f"{name}: {_led(result, lambda m: m.residuals[name].mean)}" if name else NOTHING


def _violation(condition: str) -> Value:
    return lambda metrics: metrics.conditions[condition].mean


def _arrows(result: EvaluationResult, value: Value, digits: str = ".3g") -> str:
    """Return a number of each shown set, or a dash if real data do not have it."""
    if value(result.data) is None:
        return NOTHING
    return " → ".join(f"{value(result[name]):{digits}}" for name in FIRST if name in result.sets)


def _led(result: EvaluationResult, value: Value) -> str:
    """Return a number of each shown set, with real data's in brackets, or a dash if real data do not have it."""
    real = value(result.data)
    return NOTHING if real is None else f"{_arrows(result, value)} ({real:.2g})"
