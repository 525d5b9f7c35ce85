"""The benchmark as one self-contained HTML page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pirf_ray.benchmarking.tables import COLUMN_LEGEND, LEGEND, tables
from pirf_ray.evaluation.pages import Table, html_table, paragraph, picture, write_page


def write_benchmark_page(path: Path, benchmark: dict[str, Any], pictures: Mapping[str, Path]) -> None:
    """Write the page; ``pictures``: files by caption."""
    header = benchmark["header"]
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    plan = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in header["plan"].items())
    made = tables(benchmark)
    summaries = [table for table in made if table.title.startswith("N = ")]
    parts = [
        "<h1>Physics-faithful generation: methods side by side</h1>",
        paragraph("One base model, solver and noise for all; settings searched by equal numbers of trials on other seeds."),
        paragraph(f"{header['command']} | {header['date']} | {header['machine']} | {versions}"),
        paragraph(f"Plan: {plan}."),
    ]
    if benchmark["missing"]:
        parts.append(paragraph("Not finished: " + "; ".join(benchmark["missing"]) + "."))
    parts += ["<h2>Summary</h2>", paragraph(LEGEND), *map(html_table, summaries), "<h2>Pictures</h2>"]
    parts += [picture(caption, file) for caption, file in pictures.items()]
    parts += ["<h2>Every figure</h2>", paragraph(COLUMN_LEGEND), *(html_table(t) for t in made if t not in summaries)]
    parts += ["<h2>Methods</h2>", html_table(_sources(benchmark))]
    write_page(path, "pirf_ray benchmark", parts)


def _sources(benchmark: dict[str, Any]) -> Table:
    rows = [[benchmark["titles"][m], m, benchmark["sources"][m]] for m in benchmark["titles"]]
    return Table(title="Methods, their names on the command line, their sources", columns=["method", "name", "source"], rows=rows)
