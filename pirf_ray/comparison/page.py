"""The benchmark as one self-contained HTML page."""

from collections.abc import Mapping
from pathlib import Path

from pirf_ray.comparison.summaries import BenchmarkReport
from pirf_ray.comparison.tables import COLUMN_LEGEND, LEGEND, details, summaries
from pirf_ray.evaluation.pages import Table, html_table, paragraph, plot, write_page


def write_benchmark_page(path: Path, report: BenchmarkReport, plots: Mapping[str, Path]) -> None:
    """Write the page. ``plots``: files by caption."""
    header = report.header
    plan = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in header.plan.to_json().items())
    parts = [
        "<h1>Physics-faithful generation: methods side by side</h1>",
        paragraph("One base model, solver and noise for all; settings searched by equal numbers of trials on other seeds."),
        paragraph(" | ".join(header.origin())),
        paragraph(f"Plan: {plan}."),
    ]
    if report.missing:
        parts.append(paragraph("Not finished: " + "; ".join(report.missing) + "."))
    parts += ["<h2>Summary</h2>", paragraph(LEGEND), *map(html_table, summaries(report)), "<h2>Plots</h2>"]
    parts += [plot(caption, file) for caption, file in plots.items()]
    parts += ["<h2>All metrics</h2>", paragraph(COLUMN_LEGEND), *map(html_table, details(report))]
    parts += ["<h2>Methods</h2>", html_table(_sources(report))]
    write_page(path, "pirf_ray benchmark", parts)


def _sources(report: BenchmarkReport) -> Table:
    rows = [[title, method, report.sources[method]] for method, title in report.titles.items()]
    return Table(title="Methods, their names on the command line, their sources", columns=["method", "name", "source"], rows=rows)
