"""The tables of results: one evaluation on the terminal, several runs in Markdown."""

import math
from collections.abc import Callable
from pathlib import Path

from rich.table import Table
from rich.text import Text

from envs.common.files import FileFormatError, read_json
from pirf_ray.diffusion.model import BASE, BASE_FINISHED, TUNED
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


def result_table(result: EvaluationResult) -> Table:
    """Return a table with a column per set, real data last. 95% intervals stand under the values, faults are red."""
    table = Table(
        title=f"{result.env_id} at {result.resolution}²: {result.num_samples} samples of each, "
        f"against {result.num_real} held-out solutions",
        caption="second line: 95% bootstrap interval; over floor: mean / mean of real data; "
        "as noise: the white noise (of each channel's std) that gives real data this residual; real data: a second held-out set",
    )
    first = [name for name in FIRST if name in result.sets]
    columns = first + [name for name in result.sets if name not in (*first, DATA)] + [DATA]
    corrected = {TUNED: "tuned, corrected"} if result.sampler and result.sampler.corrections else {}
    table.add_column("metric", no_wrap=True)
    for name in columns:
        table.add_column((TITLES | corrected).get(name, name), justify="right", no_wrap=True)
    for section in (_residuals(result), _physics(result), _fidelity()):
        for label, cell in section:
            table.add_row(label, *(cell(result[name]) for name in columns))
        table.add_section()
    return table


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
    return [
        *rows,
        ("re-solve error, median", lambda m: _cell(m, m.resolve.median, m.resolve.median_interval)),
        ("  trivial competitor", lambda m: _cell(m, m.resolve_trivial)),
    ]


def _fidelity() -> list[tuple[str, Cell]]:
    return [
        ("amplitude ratio", lambda m: _cell(m, m.fidelity.amplitude_ratio)),
        ("energy distance", lambda m: _cell(m, m.fidelity.energy_distance)),
        ("  over real data's", lambda m: _cell(m, m.fidelity.energy_distance_ratio_to_data)),
        ("  squared, unbiased", lambda m: _cell(m, m.fidelity.energy_distance_unbiased)),
        ("  of the known marginal", lambda m: _cell(m, m.fidelity.marginal_energy_distance)),
        ("log spectrum error (decades)", lambda m: _cell(m, m.fidelity.log_spectrum_error)),
        ("high-wavenumber energy ratio", lambda m: _cell(m, m.fidelity.high_wavenumber_ratio)),
        ("diversity ratio", lambda m: _cell(m, m.fidelity.diversity_ratio)),
    ]


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


def _cell(metrics: SetMetrics, value: float, interval: tuple[float, float] | None = None) -> Text:
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
    lines = [SUMMARY_COLUMNS, ["---"] * len(SUMMARY_COLUMNS), *(summary_row(result) for result in results)]
    return SUMMARY_LEGEND + "\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines)


def summary_row(result: EvaluationResult) -> list[str]:
    """Return the cells of one result. Arrows lead from set to set, and real data stand in brackets."""
    operator, unrewarded = result.rewarded_operator, result.unrewarded_operator
    shown = [result[name] for name in FIRST if name in result.sets]
    base, tuned = result[BASE], result[TUNED]

    def arrows(value: Callable[[SetMetrics], float], digits: str = ".3g") -> str:
        return " → ".join(f"{value(metrics):{digits}}" for metrics in shown)

    def beside_real(value: Callable[[SetMetrics], float]) -> str:
        return f"{arrows(value)} ({value(result.data):.2g})"

    floor = " below floor!" if tuned.residuals[operator].below_floor else ""
    ratio = base.residuals[operator].mean / tuned.residuals[operator].mean
    energy_ratio = tuned.fidelity.energy_distance / base.fidelity.energy_distance
    return [
        f"{result.env_id.removesuffix('-v0')} {result.resolution}²",
        str(result.sampler.nfe) if result.sampler else "-",
        beside_real(lambda m: m.residuals[operator].mean) + floor,
        f"1/{ratio:.3g}",
        arrows(lambda m: 100 * m.residuals[operator].noise_equivalent, ".2g"),
        f"{unrewarded}: {beside_real(lambda m: m.residuals[unrewarded].mean)}",
        ", ".join(f"{name} {arrows(lambda m, name=name: m.conditions[name].mean, '.2g')}" for name in result.conditions)  # type: ignore[misc]
        or "none",
        beside_real(lambda m: m.resolve.median),
        arrows(lambda m: m.fidelity.amplitude_ratio, ".3f"),
        f"{energy_ratio:.3f}",
        beside_real(lambda m: m.fidelity.log_spectrum_error),
    ]
