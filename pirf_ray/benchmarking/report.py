"""Everything that a benchmark shows: benchmark.json, Markdown tables, pictures, one HTML page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from envs.pdes import make_pde
from pirf_ray.benchmarking.aggregate import aggregate
from pirf_ray.benchmarking.cells import Cell
from pirf_ray.benchmarking.page import write_benchmark_page
from pirf_ray.benchmarking.pictures import draw_frontier, draw_gallery, draw_residual_against_nfe, draw_spectra
from pirf_ray.benchmarking.tables import markdown
from pirf_ray.checkpoints import write_json

Samples = Mapping[tuple[str, str], np.ndarray]


def write_report(directory: Path, cells: Sequence[Cell], header: dict[str, Any], samples: Samples) -> dict[str, Path]:
    """Write the report of whatever is finished into the directory; returns the files by what they are.

    ``header``: command, date, machine, versions, plan, envs, methods, num_steps, parameters (of each PDE). ``samples``:
    arrays (n, c, h, w), physical units, by (env, method) and (env, "data").
    """
    benchmark = aggregate(cells, header)
    files = {"figures": directory / "benchmark.json", "tables": directory / "benchmark.md", "page": directory / "benchmark.html"}
    write_json(files["figures"], benchmark)
    files["tables"].write_text(markdown(benchmark), encoding="utf-8")
    pictures = _draw(directory, benchmark, samples) if benchmark["envs"] else {}
    write_benchmark_page(files["page"], benchmark, pictures)
    return files | {path.stem: path for path in pictures.values()}


def _draw(directory: Path, benchmark: dict[str, Any], samples: Samples) -> dict[str, Path]:
    """Pictures by caption."""
    header = benchmark["header"]
    steps = str(header["plan"]["train_steps"])
    frontier, nfe, spectra = (directory / f"{name}.png" for name in ("frontier", "nfe", "spectra"))
    draw_frontier(frontier, benchmark, steps)
    draw_residual_against_nfe(nfe, benchmark)
    draw_spectra(spectra, benchmark, steps)
    pictures = {
        f"The frontier at N = {steps}: lower and further left is better; right of the line a method has left the data.": frontier,
        "Residual and re-solve error at every number of network evaluations.": nfe,
        "Spectra of a few methods.": spectra,
    }
    for env in benchmark["envs"]:
        if (env, "data") in samples:
            path = directory / f"gallery-{env}.png"
            pde = make_pde(env, header["plan"]["resolution"], **header["parameters"].get(env, {}))
            draw_gallery(path, pde, samples, benchmark["titles"])
            pictures[f"{env}: samples of each method from the same noise, and their residuals."] = path
    return pictures
