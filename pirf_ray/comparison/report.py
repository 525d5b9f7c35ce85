"""Everything that a benchmark shows: benchmark.json, Markdown tables, plots, one HTML page."""

from collections.abc import Sequence
from pathlib import Path

from envs.common.files import staged_file, write_json
from envs.pdes import make_pde
from pirf_ray.comparison.aggregate import aggregate
from pirf_ray.comparison.cells import Cell
from pirf_ray.comparison.directory import Samples
from pirf_ray.comparison.page import write_benchmark_page
from pirf_ray.comparison.plots import draw_frontier, draw_gallery, draw_residual_against_nfe, draw_spectra
from pirf_ray.comparison.summaries import BenchmarkReport, Header
from pirf_ray.comparison.tables import markdown
from pirf_ray.metrics.results import DATA


def write_report(directory: Path, cells: Sequence[Cell], header: Header, samples: Samples) -> dict[str, Path]:
    """Write the report of whatever is finished into the directory; return the files by what they are."""
    report = aggregate(cells, header)
    files = {"metrics": directory / "benchmark.json", "tables": directory / "benchmark.md", "page": directory / "benchmark.html"}
    write_json(files["metrics"], report.to_json())
    with staged_file(files["tables"]) as partial:
        partial.write_text(markdown(report), encoding="utf-8")
    plots = _draw(directory, report, samples) if report.envs else {}
    write_benchmark_page(files["page"], report, plots)
    return files | {path.stem: path for path in plots.values()}


def _draw(directory: Path, report: BenchmarkReport, samples: Samples) -> dict[str, Path]:
    """Draw the plots; return their files by caption."""
    header = report.header
    steps = header.plan.train_steps
    frontier, nfe, spectra = (directory / f"{name}.png" for name in ("frontier", "nfe", "spectra"))
    draw_frontier(frontier, report, steps)
    draw_residual_against_nfe(nfe, report)
    draw_spectra(spectra, report, steps)
    plots = {
        f"The frontier at N = {steps}: lower and further left is better; right of the line a method has left the data.": frontier,
        "Residual and re-solve error at every number of network evaluations.": nfe,
        "Spectra of a few methods.": spectra,
    }
    for env in report.envs:
        if (env, DATA) in samples:
            path = directory / f"gallery-{env}.png"
            pde = make_pde(env, header.plan.resolution, **header.parameters.get(env, {}))
            draw_gallery(path, pde, samples, report.titles)
            plots[f"{env}: samples of each method from the same noise, and their residuals."] = path
    return plots
