"""The benchmark's plots: frontier, residual against NFE, spectra, galleries."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from envs.pdes import PDE
from pirf_ray.comparison.directory import Samples
from pirf_ray.comparison.summaries import (
    GUARD,
    BenchmarkReport,
    EnvReport,
    StepReport,
    Summary,
    Value,
    mean_residual,
    resolve_error,
)
from pirf_ray.evaluation.pages import save
from pirf_ray.evaluation.report import field_scale, map_scale, residual_size
from pirf_ray.metrics.results import DATA

OURS = "pirf-ray"
Style = dict[str, Any]
"""Keywords of matplotlib."""
FIXED: dict[str, Style] = {
    "base": {"color": "#000000", "marker": "o", "ms": 7},
    OURS: {"color": "#D55E00", "marker": "*", "ms": 13},
}
COLORS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B6C00", "#777777")
"""Okabe & Ito 2008, the yellow darkened to be seen on white, and a grey."""
MARKERS = ("s", "^", "D", "v", "P", "X")
PANEL = 3.9
SPECTRA_OF = ("base", "base-corrected", "cocogen", "diffusion-pde", "pirf-freeze", "pirf-ray-uncorrected", "pirf-ray")
GALLERY_OF = ("base", "cocogen", "pirf-freeze", "pirf-ray")


def style_of(report: BenchmarkReport, method: str) -> Style:
    """Return a method's colour and marker, the same in every plot."""
    if method in FIXED:
        return FIXED[method]
    index = [m for m in report.titles if m not in FIXED].index(method)
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "ms": 7}


@dataclass(kw_only=True)
class Panels:
    """A figure with a column of panels per PDE, and a legend of the methods drawn."""

    report: BenchmarkReport
    title: str
    rows: int
    drawn: set[str] = field(default_factory=set)
    """Methods that stand in the legend."""

    def __post_init__(self) -> None:
        envs = len(self.report.envs)
        self.figure = Figure(figsize=(PANEL * max(envs, 2), PANEL * self.rows + 1.6), layout="constrained")
        self.figure.suptitle(self.title, fontsize=11)
        self.axes = self.figure.subplots(self.rows, envs, squeeze=False)

    def columns(self) -> list[tuple[np.ndarray, str, EnvReport]]:
        """Return the panels (rows,), the name and the report of each PDE."""
        return [(self.axes[:, i], env, part) for i, (env, part) in enumerate(self.report.envs.items())]

    def label_rows(self, *labels: str) -> None:
        """Label the vertical axes."""
        for axes, label in zip(self.axes[:, 0], labels, strict=True):
            axes.set_ylabel(label)

    def save(self, path: Path, *, line: str = "") -> None:
        """Draw the legend and write the PNG."""
        handles = [
            Line2D([], [], ls=line, label=title, **style_of(self.report, method))
            for method, title in self.report.titles.items()
            if method in self.drawn
        ]
        self.figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=9, frameon=False)
        save(self.figure, path)


def draw_frontier(path: Path, report: BenchmarkReport, num_steps: int) -> None:
    """Draw residual against energy distance over the base's, a panel per PDE; pale: trials of the searched settings."""
    title = f"N = {num_steps}: residual against energy distance to held-out solutions\n(pale: trials of each method's settings)"
    panels = Panels(report=report, title=title, rows=1)
    for (axes,), env, part in panels.columns():
        axes.set(title=env.removesuffix("-v0"), yscale="log", xlabel="energy distance / base")
        axes.axvline(GUARD, color="#999999", ls="-.", lw=1)
        here = part.steps.get(num_steps)
        if here is None:
            continue
        for method, entry in here.methods.items():
            panels.drawn.add(method)
            style = style_of(report, method)
            _point(axes, entry.energy_ratio, entry.residual, style)
            trials = [cell.metrics for cell in part.trials.get(method, ()) if cell.metrics]
            pale = {"color": style["color"], "alpha": 0.3, "ms": 5, "zorder": 1}
            axes.plot([t.energy_ratio for t in trials], [t.residual for t in trials], ".", **pale)
        _floor(axes, here.data_mean(mean_residual(part.names.default_operator)))
        axes.grid(alpha=0.25)
    panels.label_rows("mean residual, consistent operator")
    panels.save(path)


def _point(axes: Axes, x: Summary, y: Summary, style: Style) -> None:
    """Draw a marker with its intervals; one that reaches zero is cut off by the logarithmic axis."""
    axes.plot(x.mean, y.mean, ls="", mec="white", mew=0.6, zorder=3, **style)
    bar = {"color": style["color"], "lw": 1, "alpha": 0.7, "zorder": 2}
    if x.interval is not None:
        axes.plot(x.interval, [y.mean] * 2, **bar)
    if y.interval is not None:
        axes.plot([x.mean] * 2, np.maximum(y.interval, y.mean / 30), **bar)


def _floor(axes: Axes, floor: float | None) -> None:
    """Draw real data's mean, if it is in sight."""
    low = axes.dataLim.y0
    if floor is not None and floor > low / 100:
        axes.axhline(floor, color="#000000", ls="--", lw=1)
        where = (0.02, floor)
        axes.annotate("real data", where, xycoords=("axes fraction", "data"), fontsize=8, va="bottom", annotation_clip=True)


def draw_residual_against_nfe(path: Path, report: BenchmarkReport) -> None:
    """Draw residual and re-solve error at every N, a column per PDE."""
    panels = Panels(report=report, title="Residual and re-solve error against network evaluations", rows=2)
    for column, env, part in panels.columns():
        values: tuple[Value, Value] = (mean_residual(part.names.default_operator), resolve_error)
        for axes, value in zip(column, values, strict=True):
            axes.set(xscale="log", yscale="log")
            panels.drawn |= _curves(axes, report, part, value)
            floors = [step.data_mean(value) for step in part.steps.values()]
            _floor(axes, float(np.mean([floor for floor in floors if floor is not None])))
            ticks = [step.nfe for step in part.steps.values()]
            axes.set_xticks(ticks, [str(t) for t in ticks])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
        column[0].set_title(env.removesuffix("-v0"))
        column[1].set_xlabel("NFE")
    panels.label_rows("mean residual, consistent operator", "re-solve error, median")
    panels.save(path, line="-")


def _curves(axes: Axes, report: BenchmarkReport, part: EnvReport, value: Value) -> set[str]:
    """Draw a metric of each method against NFE; return the methods drawn."""
    drawn = set()
    for method in report.titles:
        points = [(step.nfe, summary.mean) for step in part.steps.values() if (summary := _summary(step, method, value))]
        if points:
            drawn.add(method)
            width = 2 if method == OURS else 1
            axes.plot(*zip(*points, strict=True), lw=width, mec="white", mew=0.5, **style_of(report, method))
    return drawn


def _summary(step: StepReport, method: str, value: Value) -> Summary | None:
    entry = step.methods.get(method)
    return entry.summary(value) if entry else None


def draw_spectra(path: Path, report: BenchmarkReport, num_steps: int) -> None:
    """Draw the power of the last channel along the columns, and its ratio to real data's, a column per PDE."""
    title = f"N = {num_steps}: spectrum of each PDE's last channel along the columns,\nand its ratio to held-out solutions'"
    panels = Panels(report=report, title=title, rows=2)
    for (power, ratio), env, part in panels.columns():
        here = part.steps.get(num_steps)
        if here is None:
            continue
        real = np.array(here.data_spectra.columns[-1])[1:]
        k = np.arange(1, len(real) + 1)
        power.plot(k, real, "k--", lw=1.5, label="real data", zorder=5)
        for method in [m for m in SPECTRA_OF if m in here.methods]:
            panels.drawn.add(method)
            own = np.array(here.methods[method].spectra.columns[-1])[1:]
            style = {"color": style_of(report, method)["color"], "lw": 2 if method == OURS else 1.2}
            power.plot(k, own, **style)
            ratio.plot(k, own / real, **style)
        smallest = real[real > 0].min() / 30
        power.set(title=f"{env.removesuffix('-v0')}: {part.names.channels[-1]}", yscale="log", ylim=(smallest, None))
        largest = max((line.get_ydata().max() for line in ratio.lines), default=1.0)
        ratio.set(yscale="log", xlabel="wavenumber (cycles over the axis)", ylim=(0.3, min(max(3.0, 1.2 * largest), 1e3)))
        ratio.axhline(1, color="k", ls="--", lw=1)
        for axes in (power, ratio):
            axes.grid(alpha=0.25)
    panels.label_rows("mean power", "over real data")
    panels.save(path, line="-")


def draw_gallery(path: Path, pde: PDE, samples: Samples, titles: Mapping[str, str]) -> None:
    """Draw real data and methods in rows: samples of the last channel, and the residual of each beside it.

    Methods' samples in one column are from the same noise.
    """
    rows = [DATA, *(m for m in GALLERY_OF if (pde.env_id, m) in samples)]
    count = min(len(samples[pde.env_id, row]) for row in rows)
    fields = {row: torch.from_numpy(samples[pde.env_id, row][:count].astype(np.float64)) for row in rows}
    maps = {row: residual_size(pde, x, pde.default_operator) for row, x in fields.items()}
    norm, colors = field_scale(torch.cat([x[:, -1] for x in fields.values()]).numpy())
    residual_norm: LogNorm = map_scale(np.concatenate([m for row, m in maps.items() if row != DATA] or [maps[DATA]]))
    figure = Figure(figsize=(1.75 * 2 * count + 2.4, 1.75 * len(rows) + 0.9), layout="constrained")
    figure.suptitle(f"{pde.env_id}: {pde.channels[-1]} and |residual| ({pde.default_operator} operator)", fontsize=11)
    grid = figure.subplots(len(rows), 2 * count, squeeze=False)
    for panels, row in zip(grid, rows, strict=True):
        for i in range(count):
            field_image = panels[i].imshow(fields[row][i, -1].numpy(), norm=norm, cmap=colors, origin="lower", aspect="auto")
            residual = panels[count + i].imshow(maps[row][i], norm=residual_norm, cmap="magma", origin="lower", aspect="auto")
        for axes in panels:
            axes.set(xticks=[], yticks=[])
        panels[0].set_ylabel("real data" if row == DATA else titles[row], fontsize=9)
    halves = {"fields": grid[:, :count].ravel().tolist(), "residuals": grid[:, count:].ravel().tolist()}
    below: Style = {"location": "bottom", "aspect": 40, "pad": 0.01}
    figure.colorbar(field_image, ax=halves["fields"], label=pde.channels[-1], **below)
    figure.colorbar(residual, ax=halves["residuals"], label="|residual|", extend="both", **below)
    save(figure, path)
