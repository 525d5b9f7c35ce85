"""The benchmark as one self-contained HTML page: tables, pictures as data, nothing fetched and no script."""

import base64
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from pirf_ray.benchmarking.tables import COLUMN_LEGEND, LEGEND, Table, tables

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; padding: 1rem; max-width: 76rem; color: #1a1a1a; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
caption { text-align: left; font-weight: 600; padding: .4rem 0; }
th, td { padding: .25rem .6rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap; }
thead th { position: sticky; top: 0; background: #f4f4f4; white-space: normal; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
tr:last-child td { border-bottom: 2px solid #888; }
figure { margin: 1rem 0; } img { max-width: 100%; height: auto; } figcaption { font-size: .9rem; color: #444; }
@media print { .wide { overflow: visible; } table { font-size: .55rem; } }
"""
PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>pirf_ray benchmark</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""


def write_page(path: Path, benchmark: dict[str, Any], pictures: Mapping[str, Path]) -> None:
    """Write the page; ``pictures``: files by caption."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page(benchmark, pictures), encoding="utf-8")
    os.replace(partial, path)


def page(benchmark: dict[str, Any], pictures: Mapping[str, Path]) -> str:
    header = benchmark["header"]
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    plan = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in header["plan"].items())
    made = tables(benchmark)
    summaries = [table for table in made if table.title.startswith("N = ")]
    parts = [
        "<h1>Physics-faithful generation: methods side by side</h1>",
        _paragraph("One base model, solver and noise for all; settings searched by equal numbers of trials on other seeds."),
        _paragraph(f"{header['command']} | {header['date']} | {header['machine']} | {versions}"),
        _paragraph(f"Plan: {plan}."),
    ]
    if benchmark["missing"]:
        parts.append(_paragraph("Not finished: " + "; ".join(benchmark["missing"]) + "."))
    parts += ["<h2>Summary</h2>", _paragraph(LEGEND), *map(_table, summaries), "<h2>Pictures</h2>"]
    parts += [_picture(caption, file) for caption, file in pictures.items()]
    parts += ["<h2>Every figure</h2>", _paragraph(COLUMN_LEGEND), *(_table(t) for t in made if t not in summaries)]
    parts += ["<h2>Methods</h2>", _table(_sources(benchmark))]
    return PAGE.format(style=STYLE, body="\n".join(parts))


def _sources(benchmark: dict[str, Any]) -> Table:
    rows = [[benchmark["titles"][m], m, benchmark["sources"][m]] for m in benchmark["titles"]]
    return Table(title="Methods, their names on the command line, their sources", columns=["method", "name", "source"], rows=rows)


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>"


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = []
    for i, row in enumerate(table.rows):
        cells = [f"<b>{escape(c)}</b>" if (i, j) in table.bold else escape(c) for j, c in enumerate(row)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    body = "\n".join(rows)
    caption = escape(table.title)
    return f'<div class="wide"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _picture(caption: str, file: Path) -> str:
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    text = escape(caption)
    return f'<figure><img alt="{escape(caption, quote=True)}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'
