"""Parts of reports: tables in Markdown and HTML, plots, self-contained HTML pages without scripts."""

import base64
from dataclasses import dataclass
from html import escape
from pathlib import Path

from matplotlib.figure import Figure
from rich.table import Table as RichTable

from envs.common.files import staged_file

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
<title>{title}</title><style>{style}</style></head>
<body>
{body}
</body></html>
"""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Table of text cells."""

    title: str
    """Caption of the table."""
    columns: list[str]
    """Names of the columns."""
    rows: list[list[str]]
    """Cells of each row."""
    bold: frozenset[tuple[int, int]] = frozenset()
    """Bold cells, as (row, column)."""


def write_page(path: Path, title: str, parts: list[str]) -> None:
    """Write the HTML page of the parts. It appears, or replaces an older page, only when it is complete."""
    with staged_file(path) as partial:
        partial.write_text(PAGE.format(title=escape(title), style=STYLE, body="\n".join(parts)), encoding="utf-8")


def paragraph(text: str) -> str:
    """Return an HTML paragraph of plain text."""
    return f"<p>{escape(text)}</p>"


def html_table(table: Table) -> str:
    """Return a table in HTML."""
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = []
    for i, row in enumerate(table.rows):
        cells = [f"<b>{escape(c)}</b>" if (i, j) in table.bold else escape(c) for j, c in enumerate(row)]
        rows.append("<tr>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    body = "\n".join(rows)
    caption = escape(table.title)
    return f'<div class="wide"><table><caption>{caption}</caption><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def plot(caption: str, file: Path) -> str:
    """Return an HTML figure that holds a PNG file's bytes."""
    data = base64.b64encode(file.read_bytes()).decode("ascii")
    text = escape(caption)
    return f'<figure><img alt="{escape(caption, quote=True)}" src="data:image/png;base64,{data}"><figcaption>{text}</figcaption></figure>'


def markdown_table(table: Table) -> str:
    """Return a table in Markdown, without its title."""
    lines = [table.columns, ["---"] * len(table.columns)]
    for i, row in enumerate(table.rows):
        lines.append([f"**{_plain(c)}**" if (i, j) in table.bold else _plain(c) for j, c in enumerate(row)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def rich_table(table: Table) -> RichTable:
    """Return a table for the terminal."""
    made = RichTable(title=table.title)
    for i, column in enumerate(table.columns):
        made.add_column(column, justify="right" if i else "left")
    for row in table.rows:
        made.add_row(*row)
    return made


def _plain(cell: str) -> str:
    return cell.replace("|", "\\|").replace("\n", " ")


def save(figure: Figure, path: Path, *, dpi: float = 110) -> None:
    """Write a PNG. It appears, or replaces an older file, only when it is complete."""
    with staged_file(path) as partial:
        figure.savefig(partial, format="png", dpi=dpi)
