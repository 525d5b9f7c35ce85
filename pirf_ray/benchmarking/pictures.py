"""The benchmark's pictures: frontier, residual against NFE, spectra, galleries."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from envs.pdes import PDE
from pirf_ray.evaluation.pages import save
from pirf_ray.evaluation.report import field_scale, map_scale, residual_size

OURS = "pirf-ray"
FIXED = {"base": {"color": "#000000", "marker": "o", "ms": 7}, OURS: {"color": "#D55E00", "marker": "*", "ms": 13}}
COLORS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8B6C00", "#777777")
"""Okabe & Ito 2008, the yellow darkened to be seen on white, and a grey."""
MARKERS = ("s", "^", "D", "v", "P", "X")
PANEL = 3.9
SPECTRA_OF = ("base", "base-corrected", "cocogen", "diffusion-pde", "pirf-freeze", "pirf-ray-uncorrected", "pirf-ray")
GALLERY_OF = ("base", "cocogen", "pirf-freeze", "pirf-ray")
Samples = Mapping[tuple[str, str], np.ndarray]


def style_of(benchmark: dict[str, Any], method: str) -> dict[str, Any]:
    """One colour and marker a method, in every picture."""
    if method in FIXED:
        return FIXED[method]
    index = [m for m in benchmark["titles"] if m not in FIXED].index(method)
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)], "ms": 7}


def _panels(benchmark: dict[str, Any], rows: int, title: str) -> tuple[Figure, np.ndarray, list[str]]:
    envs = list(benchmark["envs"])
    figure = Figure(figsize=(PANEL * max(len(envs), 2), PANEL * rows + 1.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    return figure, figure.subplots(rows, len(envs), squeeze=False), envs


def _legend(figure: Figure, benchmark: dict[str, Any], methods: list[str], *, line: str = "") -> None:
    handles = [
        Line2D([], [], ls=line, label=benchmark["titles"][m], **style_of(benchmark, m))
        for m in benchmark["titles"]
        if m in methods
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=6, fontsize=9, frameon=False)


def draw_frontier(path: Path, benchmark: dict[str, Any], steps: str) -> None:
    """A panel a PDE: residual against energy distance over the base's; pale: trials of the searched settings."""
    title = f"N = {steps}: residual against energy distance to held-out solutions\n(pale: trials of each method's settings)"
    figure, panels, envs = _panels(benchmark, 1, title)
    shown: set[str] = set()
    for axes, env in zip(panels[0], envs, strict=True):
        part = benchmark["envs"][env]
        operator = part["default_operator"]
        axes.set(title=env.removesuffix("-v0"), yscale="log", xlabel="energy distance / base")
        axes.axvline(benchmark["guard"], color="#999999", ls="-.", lw=1)
        here = part["steps"].get(steps)
        if here is None:
            continue
        for method, entry in here["methods"].items():
            shown.add(method)
            _point(
                axes, entry["figures"]["energy_ratio"], entry["figures"][f"residual/{operator}/mean"], style_of(benchmark, method)
            )
            trials = [t for t in part["trials"].get(method, []) if "residual" in t]
            color = style_of(benchmark, method)["color"]
            axes.plot(
                [t["energy_ratio"] for t in trials], [t["residual"] for t in trials], ".", color=color, alpha=0.3, ms=5, zorder=1
            )
        _floor(axes, here["data"][f"residual/{operator}/mean"])
        axes.grid(alpha=0.25)
    panels[0][0].set_ylabel("mean residual, consistent operator")
    _legend(figure, benchmark, sorted(shown))
    save(figure, path)


def _point(axes: Axes, x: dict[str, Any], y: dict[str, Any], style: dict[str, Any]) -> None:
    """A marker with its intervals; one that reaches zero is cut off by the logarithmic axis."""
    axes.plot(x["mean"], y["mean"], ls="", mec="white", mew=0.6, zorder=3, **style)
    for interval, horizontal in ((x["interval"], True), (y["interval"], False)):
        if interval is None:
            continue
        ends = (interval, [y["mean"]] * 2) if horizontal else ([x["mean"]] * 2, np.maximum(interval, y["mean"] / 30))
        axes.plot(*ends, color=style["color"], lw=1, alpha=0.7, zorder=2)


def _floor(axes: Axes, floor: float) -> None:
    """Real data's mean residual, where it is in sight."""
    low = axes.dataLim.y0
    if floor > low / 100:
        axes.axhline(floor, color="#000000", ls="--", lw=1)
        axes.annotate(
            "real data", (0.02, floor), xycoords=("axes fraction", "data"), fontsize=8, va="bottom", annotation_clip=True
        )


def draw_residual_against_nfe(path: Path, benchmark: dict[str, Any]) -> None:
    """A column a PDE: residual and re-solve error at every N."""
    figure, panels, envs = _panels(benchmark, 2, "Residual and re-solve error against network evaluations")
    shown: set[str] = set()
    for column, env in enumerate(envs):
        part = benchmark["envs"][env]
        keys = (f"residual/{part['default_operator']}/mean", "resolve/median")
        for axes, key in zip(panels[:, column], keys, strict=True):
            axes.set(xscale="log", yscale="log")
            for method in benchmark["titles"]:
                points = [
                    (here["nfe"], here["methods"][method]["figures"][key]["mean"])
                    for here in part["steps"].values()
                    if method in here["methods"]
                ]
                if points:
                    shown.add(method)
                    axes.plot(
                        *zip(*points, strict=True),
                        lw=2 if method == OURS else 1,
                        mec="white",
                        mew=0.5,
                        **style_of(benchmark, method),
                    )
            _floor(axes, float(np.mean([here["data"][key] for here in part["steps"].values()])))
            ticks = [here["nfe"] for here in part["steps"].values()]
            axes.set_xticks(ticks, [str(t) for t in ticks])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
        panels[0][column].set_title(env.removesuffix("-v0"))
        panels[1][column].set_xlabel("NFE")
    panels[0][0].set_ylabel("mean residual, consistent operator")
    panels[1][0].set_ylabel("re-solve error, median")
    _legend(figure, benchmark, sorted(shown), line="-")
    save(figure, path)


def draw_spectra(path: Path, benchmark: dict[str, Any], steps: str) -> None:
    """A column a PDE: power of the last channel along the columns, and over real data's."""
    title = f"N = {steps}: spectrum of each PDE's last channel along the columns,\nand its ratio to held-out solutions'"
    figure, panels, envs = _panels(benchmark, 2, title)
    shown: set[str] = set()
    for column, env in enumerate(envs):
        part = benchmark["envs"][env]
        here = part["steps"].get(steps)
        if here is None:
            continue
        power, ratio = panels[:, column]
        real = np.array(here["data_spectra"]["columns"][-1])[1:]
        k = np.arange(1, len(real) + 1)
        power.plot(k, real, "k--", lw=1.5, label="real data", zorder=5)
        for method in [m for m in SPECTRA_OF if m in here["methods"]]:
            shown.add(method)
            own = np.array(here["methods"][method]["spectra"]["columns"][-1])[1:]
            style = {"color": style_of(benchmark, method)["color"], "lw": 2 if method == OURS else 1.2}
            power.plot(k, own, **style)
            ratio.plot(k, own / real, **style)
        power.set(
            title=f"{env.removesuffix('-v0')}: {part['channels'][-1]}", yscale="log", ylim=(real[real > 0].min() / 30, None)
        )
        largest = max((line.get_ydata().max() for line in ratio.lines), default=1.0)
        ratio.set(yscale="log", xlabel="wavenumber (cycles over the axis)", ylim=(0.3, min(max(3.0, 1.2 * largest), 1e3)))
        ratio.axhline(1, color="k", ls="--", lw=1)
        for axes in (power, ratio):
            axes.grid(alpha=0.25)
    panels[0][0].set_ylabel("mean power")
    panels[1][0].set_ylabel("over real data")
    _legend(figure, benchmark, sorted(shown), line="-")
    save(figure, path)


def draw_gallery(path: Path, pde: PDE, samples: Samples, titles: Mapping[str, str]) -> None:
    """Real data and methods in rows: samples of the last channel, and the residual of each beside it.

    Methods' samples in one column are from the same noise.
    """
    rows = ["data", *(m for m in GALLERY_OF if (pde.env_id, m) in samples)]
    count = min(len(samples[pde.env_id, row]) for row in rows)
    fields = {row: torch.from_numpy(samples[pde.env_id, row][:count].astype(np.float64)) for row in rows}
    maps = {row: residual_size(pde, x, pde.default_operator) for row, x in fields.items()}
    norm, colors = field_scale(torch.cat([x[:, -1] for x in fields.values()]).numpy())
    residual_norm: LogNorm = map_scale(np.concatenate([m for row, m in maps.items() if row != "data"] or [maps["data"]]))
    figure = Figure(figsize=(1.75 * 2 * count + 2.4, 1.75 * len(rows) + 0.9), layout="constrained")
    figure.suptitle(f"{pde.env_id}: {pde.channels[-1]} and |residual| ({pde.default_operator} operator)", fontsize=11)
    grid = figure.subplots(len(rows), 2 * count, squeeze=False)
    for panels, row in zip(grid, rows, strict=True):
        for i in range(count):
            field = panels[i].imshow(fields[row][i, -1].numpy(), norm=norm, cmap=colors, origin="lower", aspect="auto")
            residual = panels[count + i].imshow(maps[row][i], norm=residual_norm, cmap="magma", origin="lower", aspect="auto")
        for axes in panels:
            axes.set(xticks=[], yticks=[])
        panels[0].set_ylabel("real data" if row == "data" else titles[row], fontsize=9)
    figure.colorbar(field, ax=grid[:, :count].ravel().tolist(), location="bottom", aspect=40, pad=0.01, label=pde.channels[-1])
    figure.colorbar(
        residual, ax=grid[:, count:].ravel().tolist(), location="bottom", aspect=40, pad=0.01, label="|residual|", extend="both"
    )
    save(figure, path)
