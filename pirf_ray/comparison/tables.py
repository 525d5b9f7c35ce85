"""The benchmark as tables of text: rows of cells that Markdown and HTML both print."""

from collections.abc import Callable
from dataclasses import dataclass

from pirf_ray.comparison.cells import PDENames
from pirf_ray.comparison.summaries import (
    BenchmarkReport,
    MethodEntry,
    Summary,
    TrainingReport,
    Value,
    mean_residual,
    resolve_error,
)
from pirf_ray.evaluation.pages import Table, markdown_table
from pirf_ray.metrics.results import FidelityMetrics

SUMMARY_STEPS = (20, 10)
OUTSIDE, UNDER = "†", "‡"
LEGEND = (
    "Each cell: mean residual of the PDE's consistent operator over the base model's, then the energy distance to held-out "
    "solutions over the base model's, both on the same noise. Bold: lowest residual among the methods whose energy distance is at "
    f"most 1.1 times the base's. {OUTSIDE}: outside that limit. {UNDER}: below the residual of real data, a hacked reward. "
    "Methods within 1 % of each other are equal, as seeds differ by more. Methods within 5 % of real data's residual are equal, "
    "too: there is nothing left to gain."
)
COLUMN_LEGEND = (
    "Intervals are 95 %: over seeds (Student) if there are several, else over samples (bootstrap). Costs are for each sample: "
    "NFE counts network evaluations, the gradient columns backward passes through the network and gradients of the residual alone. "
    "Training: network forwards and backward passes of single samples. Real data: a second held-out set, measured like a method."
)
COST_COLUMNS = ("NFE", "network gradients", "residual gradients", "samples/s", "training: forwards", "gradients", "seconds")


def tables(report: BenchmarkReport) -> list[Table]:
    """Return the summary at each N that it is made for, then each PDE at each N."""
    return summaries(report) + details(report)


def summaries(report: BenchmarkReport) -> list[Table]:
    """Return the tables of methods by PDEs."""
    return [summary(report, n) for n in SUMMARY_STEPS if any(n in env.steps for env in report.envs.values())]


def details(report: BenchmarkReport) -> list[Table]:
    """Return the tables of each PDE at each N."""
    return [detail(report, env, n) for env, part in report.envs.items() for n in part.steps]


def summary(report: BenchmarkReport, num_steps: int) -> Table:
    """Return methods by PDEs at one N."""
    parts = {env: part.steps[num_steps] for env, part in report.envs.items() if num_steps in part.steps}
    rows: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for method, title in report.titles.items():
        bold |= {(len(rows), column) for column, part in enumerate(parts.values(), start=1) if method in part.first}
        rows.append([title, *(_summary_cell(part.methods.get(method)) for part in parts.values())])
    nfe = next(iter(parts.values())).nfe
    names = [env.removesuffix("-v0") for env in parts]
    return Table(title=f"N = {num_steps} ({nfe} NFE)", columns=["method", *names], rows=rows, bold=frozenset(bold))


def _summary_cell(entry: MethodEntry | None) -> str:
    if entry is None:
        return "-"
    return f"{number(entry.residual_ratio.mean)}, {number(entry.energy_ratio.mean)}{flags(entry)}"


def flags(entry: MethodEntry) -> str:
    """Return the marks of a method outside the limit or below real data's residual."""
    return ("" if entry.within_guard else f" {OUTSIDE}") + (f" {UNDER}" if entry.below_floor else "")


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column of metrics."""

    label: str
    summary: Callable[[MethodEntry], Summary | None]
    """Number of a method."""
    value: Value | None
    """The same number of real data; None if they have none."""
    with_interval: bool = False


def detail(report: BenchmarkReport, env: str, num_steps: int) -> Table:
    """Return every metric and cost of one PDE at one N."""
    part = report.envs[env]
    here = part.steps[num_steps]
    columns = _columns(part.names)
    rows: list[list[str]] = []
    bold: set[tuple[int, int]] = set()
    for method, entry in here.methods.items():
        if method in here.first:
            bold |= {(len(rows), 0), (len(rows), 1)}
        cells = [_cell(column.summary(entry), with_interval=column.with_interval) for column in columns]
        rows.append([report.titles[method] + flags(entry), *cells, *_costs(entry, part.training.get(method))])
    real = [number(here.data_mean(column.value) if column.value else None) for column in columns]
    rows.append(["real data", *real, *["-"] * len(COST_COLUMNS)])
    return Table(
        title=f"{env}, N = {num_steps} ({here.nfe} NFE): {here.samples} samples against {here.real}",
        columns=["method", *(column.label for column in columns), *COST_COLUMNS],
        rows=rows,
        bold=frozenset(bold),
    )


def _columns(names: PDENames) -> list[Column]:
    default, unrewarded = names.default_operator, names.unrewarded_operator
    rewarded = Column(
        label=f"{default} residual", summary=lambda entry: entry.residual, value=mean_residual(default), with_interval=True
    )
    columns = [rewarded, _column("median", lambda metrics: metrics.residuals[default].median)]
    if "paper" in names.operators:
        columns.append(_column("paper operator", mean_residual("paper")))
    if unrewarded not in ("", default, "paper"):
        columns.append(_column(f"unrewarded check: {unrewarded}", mean_residual(unrewarded)))
    energy = Column(label="energy distance / base", summary=lambda entry: entry.energy_ratio, value=None, with_interval=True)
    return [
        *columns,
        *(_column(name.replace("_", " "), _mean_violation(name)) for name in names.conditions),
        _column("re-solve error", resolve_error),
        _fidelity("amplitude", lambda fidelity: fidelity.amplitude_ratio),
        energy,
        _fidelity("energy distance", lambda fidelity: fidelity.energy_distance),
        _fidelity("of the marginal", lambda fidelity: fidelity.marginal_energy_distance),
        _fidelity("log spectrum error", lambda fidelity: fidelity.log_spectrum_error),
        _fidelity("high wavenumbers", lambda fidelity: fidelity.high_wavenumber_ratio),
        _fidelity("MMSE", lambda fidelity: fidelity.mean_field_error),
        _fidelity("SMSE", lambda fidelity: fidelity.std_field_error),
        _fidelity("diversity", lambda fidelity: fidelity.diversity_ratio),
        _fidelity("nearest training", lambda fidelity: fidelity.nearest_training_distance),
    ]


def _column(label: str, value: Value) -> Column:
    return Column(label=label, summary=lambda entry: entry.summary(value), value=value)


def _fidelity(label: str, value: Callable[[FidelityMetrics], float | None]) -> Column:
    return _column(label, lambda metrics: value(metrics.fidelity))


def _mean_violation(condition: str) -> Value:
    return lambda metrics: metrics.conditions[condition].mean


def _cell(summary: Summary | None, *, with_interval: bool) -> str:
    if summary is None:
        return "-"
    interval = summary.interval if with_interval else None
    return number(summary.mean) + (f" ({number(interval[0])} to {number(interval[1])})" if interval else "")


def _costs(entry: MethodEntry, training: TrainingReport | None) -> list[str]:
    cost = entry.cost
    own = [f"{count:.4g}" for count in (cost.network_forwards, cost.network_gradients, cost.residual_gradients)]
    spent = ["-"] * 3
    if training:
        spent = [f"{n:.0f}" for n in (training.cost.network_forwards, training.cost.network_gradients, training.cost.seconds)]
    return [*own, number(1 / cost.seconds), *spent]


def number(value: float | None) -> str:
    """Return a number with three digits; a dash for None."""
    return "-" if value is None else f"{value:.3g}"


def markdown(report: BenchmarkReport) -> str:
    """Return all tables, with their legend."""
    command, date, machine, versions = report.header.origin()
    parts = [f"`{command}`, {date}, {machine}; {versions}", LEGEND, COLUMN_LEGEND]
    if report.missing:
        parts.append("Not finished: " + "; ".join(report.missing) + ".")
    parts += [f"**{table.title}**\n\n{markdown_table(table)}" for table in tables(report)]
    return "\n\n".join(parts) + "\n"
