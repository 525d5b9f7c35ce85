"""The report of a run as one plot: residual, reward and fidelity against updates, fields, residual maps, spectra, histogram.

What the PDE leaves out is left out here too.
"""

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.image import AxesImage
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from envs.numerics.grids import Axis
from envs.pdes import PDE
from pirf_ray.evaluation.pages import save
from pirf_ray.metrics import spectra
from pirf_ray.metrics.base import REWARD
from pirf_ray.metrics.drift import Drift, DriftLimits
from pirf_ray.metrics.results import EvaluationResult, SetMetrics
from pirf_ray.training.records import UpdateRecord

COLORS = {"base": "#0072B2", "tuned": "#D55E00", "data": "#000000", "guard": "#009E73", "limit": "#999999"}
"""Colours that every kind of colour vision distinguishes (Okabe & Ito 2008). Line styles differ too."""
STYLES = {"base": "-", "tuned": "-", "data": "--"}
LABELS = {"base": "base", "tuned": "tuned", "data": "real data"}
SETS = ("base", "tuned", "data")
PAIRS = 4
"""Number of noise samples whose fields are shown."""
DECADES = 4
"""Largest number of decades of a residual map's colours."""
History = Sequence[UpdateRecord]
"""Records of a run's updates."""
Number = Callable[[UpdateRecord], float | None]
"""Function from a record to a number. None if the record does not have the number."""
Samples = Mapping[str, np.ndarray]
"""Fields (n, c, h, w) by set, physical units."""


@dataclass(frozen=True, kw_only=True)
class GuardPanel:
    """Panel of one statistic of the guard's drift against updates."""

    title: str
    """Title of the panel."""
    value: Callable[[Drift], float]
    """Function from a drift to the statistic."""
    of_base: float
    """Value of the base model."""
    bounds: Callable[[DriftLimits], tuple[float, ...]]
    """Function from the guard's limits to the limits of the statistic."""


GUARD_PANELS = (
    GuardPanel(
        title="Amplitude, tuned / base",
        value=lambda drift: drift.amplitude_ratio,
        of_base=1,
        bounds=lambda limits: (1 - limits.guard_amplitude, 1 + limits.guard_amplitude),
    ),
    GuardPanel(
        title="Energy distance, tuned / base",
        value=lambda drift: drift.energy_ratio,
        of_base=1,
        bounds=lambda limits: (limits.guard_energy,),
    ),
    GuardPanel(
        title="Spectrum error over base (decades)",
        value=lambda drift: drift.spectrum_rise,
        of_base=0,
        bounds=lambda limits: (limits.guard_spectrum,),
    ),
)
HEADLINE_WIDTH = 150
"""Letters of a line above the plots."""


def draw_report(path: Path, *, pde: PDE, history: History, result: EvaluationResult, samples: Samples) -> None:
    """Draw report.png from a run's records, its evaluation and its samples.

    ``samples`` holds the sets base, tuned and data. base[i] and tuned[i] must be from the same noise.
    """
    missing = [name for name in SETS if name not in samples or len(samples[name]) == 0]
    if missing:
        raise ValueError(f"samples must hold base, tuned and data; missing or empty: {missing}")
    operator = result.rewarded_operator
    rows = 2 * len(_shown_channels(pde)) + (2 if operator else 0)
    figure = Figure(figsize=(15, 6.5 + 2.75 * rows), layout="constrained", dpi=100)
    figure.suptitle(_headline(pde, result, operator), fontsize=10)
    top, middle, bottom = figure.subfigures(3, 1, squeeze=False, height_ratios=(4, 2.75 * rows, 4), hspace=0.02)[:, 0]
    _draw_training(top, history, result, operator)
    tensors = {name: torch.from_numpy(np.asarray(samples[name], dtype=np.float64)) for name in SETS}
    _draw_fields(middle, pde, tensors, operator)
    _draw_statistics(bottom, pde, tensors, result, operator)
    save(figure, path, dpi=figure.dpi)


def _headline(pde: PDE, result: EvaluationResult, operator: str) -> str:
    """Return the equation and the main metrics, as base -> tuned (real data)."""
    shown: dict[str, Callable[[SetMetrics], float | None]] = {
        "mean reward": lambda m: m.named.get(REWARD),
        f"residual ({operator})": lambda m: m.residuals[operator].mean if operator else None,
        "re-solve error": lambda m: m.resolve_median,
        "amplitude": lambda m: m.fidelity.amplitude_ratio,
        "energy distance": lambda m: m.fidelity.energy_distance,
    }
    base, tuned, data = (result[name] for name in SETS)
    known = {label: value for label, value in shown.items() if value(data) is not None}
    changes = [f"{label} {value(base):.3g} → {value(tuned):.3g} ({value(data):.2g})" for label, value in known.items()]
    equation = f"{pde.env_id}, {pde.resolution} x {pde.resolution}:  {pde.equation}"
    return equation + "\n" + textwrap.fill("base → tuned (real data):  " + ",  ".join(changes), HEADLINE_WIDTH)


def _draw_training(part: SubFigure, history: History, result: EvaluationResult, operator: str) -> None:
    wide: list[Callable[[Axes], None]] = []
    if operator:
        wide.append(lambda axes: _draw_residual_history(axes, history, result, operator))
    if REWARD in result.data.named or not operator:
        wide.append(lambda axes: _draw_reward_history(axes, history, result))
    drawn = part.subplots(1, len(wide) + len(GUARD_PANELS), width_ratios=[5] * len(wide) + [3] * len(GUARD_PANELS))
    for axes, draw in zip(drawn, wide, strict=False):
        draw(axes)
    for axes, panel in zip(drawn[len(wide) :], GUARD_PANELS, strict=True):
        _draw_guard(axes, history, result, panel)


def _draw_residual_history(axes: Axes, history: History, result: EvaluationResult, operator: str) -> None:
    axes.set(
        title=f"Residual while training\n({operator} operator)", xlabel="update", ylabel="mean square residual", yscale="log"
    )
    for statistic, style in (("mean", {"alpha": 0.5, "lw": 1.2}), ("median", {"lw": 1.8})):
        updates, values = _column(history, _batch_residual(operator, statistic))
        axes.plot(updates, values, color=COLORS["tuned"], label=f"training batch, {statistic}", **style)  # type: ignore[arg-type]
    updates, values = _column(history, lambda record: record.guard.residual if record.guard else None)
    axes.plot(updates, values, "o-", color=COLORS["guard"], ms=5, lw=1, label="guard samples, mean")
    _draw_level(axes, result["base"].residuals[operator].mean, label="base model, mean", color=COLORS["base"], ls=":")
    floor = result.data.residuals[operator].mean
    if _far_below(floor, axes.dataLim.y0):
        axes.plot([], [], " ", label=_off_axis_label(floor))
    else:
        _draw_level(axes, floor, label="floor: real data, mean", color=COLORS["data"], ls="--")
    _mark_kept(axes, result)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8.5)


def _draw_reward_history(axes: Axes, history: History, result: EvaluationResult) -> None:
    axes.set(title="Reward while training", xlabel="update", ylabel="mean reward")
    updates, values = _column(history, lambda record: record.metrics.reward)
    axes.plot(updates, values, color=COLORS["tuned"], alpha=0.5, lw=1.2, label="training batch")
    updates, values = _column(history, lambda record: record.guard.reward if record.guard else None)
    axes.plot(updates, values, "o-", color=COLORS["guard"], ms=5, lw=1, label="guard samples")
    for name, style in (("base", ":"), ("data", "--")):
        level = result[name].named.get(REWARD)
        if level is not None and np.isfinite(level):
            axes.axhline(level, color=COLORS[name], ls=style, label=LABELS[name])
    _mark_kept(axes, result)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8.5)


def _batch_residual(operator: str, statistic: str) -> Number:
    """Return the function from a record to a statistic of the batch's residual."""

    def number(record: UpdateRecord) -> float | None:
        term = record.metrics.terms.get(operator)
        value: float | None = getattr(term, statistic) if term else None
        return value

    return number


def _draw_guard(axes: Axes, history: History, result: EvaluationResult, panel: GuardPanel) -> None:
    axes.set_title(textwrap.fill(panel.title, 18), fontsize=11)
    axes.set(xlabel="update")
    updates, values = _column(history, lambda record: panel.value(record.guard.drift) if record.guard else None)
    if not len(updates):
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no guard evaluation in this run", ha="center", va="center", transform=axes.transAxes)
        return
    axes.plot(updates, values, "o-", color=COLORS["guard"], ms=4, lw=1.2, label="tuned, guard samples")
    axes.axhline(panel.of_base, color=COLORS["base"], ls=":", label="base")
    limits = [record.guard.limits for record in history if record.guard][-1]
    for i, bound in enumerate(panel.bounds(limits)):
        axes.axhline(bound, color=COLORS["limit"], ls="-.", label=None if i else "guard's limit")
    _mark_kept(axes, result)
    axes.margins(y=0.15)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8.5)


def _column(history: History, number: Number) -> tuple[np.ndarray, np.ndarray]:
    """Return the updates and the finite values of the records that have the number."""
    pairs = [(record.update, value) for record in history if (value := number(record)) is not None]
    values = np.array(pairs, dtype=float).reshape(-1, 2)
    values = values[np.isfinite(values[:, 1])]
    return values[:, 0], values[:, 1]


def _far_below(floor: float, lowest: float) -> bool:
    """Return whether a floor would stretch an axis over too many decades, as the floor of an exact operator does."""
    smallest: float = lowest / 10.0**DECADES
    return 0 < floor < smallest


def _off_axis_label(floor: float) -> str:
    """Return the legend's text for a floor that is not drawn."""
    return f"floor: real data, mean {floor:.1g} (off the axis)"


def _draw_level(axes: Axes, value: float, **style: Any) -> None:
    """Draw a horizontal line if a logarithmic axis can show the value."""
    if np.isfinite(value) and value > 0:
        axes.axhline(value, **style)


def _mark_kept(axes: Axes, result: EvaluationResult) -> None:
    """Mark the update of the kept checkpoint."""
    if result.kept_update is not None:
        axes.axvline(result.kept_update, color="#56B4E9", lw=5, alpha=0.35, zorder=0, label="kept checkpoint")


def _shown_channels(pde: PDE) -> range:
    """Return both of two channels (coefficient or source, and solution), or the last of a sequence of frames."""
    return range(len(pde.channels))[-2:] if len(pde.channels) == 2 else range(len(pde.channels))[-1:]


def _draw_fields(part: SubFigure, pde: PDE, samples: Mapping[str, torch.Tensor], operator: str) -> None:
    """Draw fields and residual maps: a column per noise sample and one of real data, rows for base and tuned."""
    shown = _shown_channels(pde)
    count = min(PAIRS, len(samples["base"]), len(samples["tuned"]))
    real = samples["data"][np.arange(2) % len(samples["data"])]
    rows = {"base": torch.cat([samples["base"][:count], real[:1]]), "tuned": torch.cat([samples["tuned"][:count], real[1:]])}
    grid = part.subplots(2 * len(shown) + (2 if operator else 0), count + 1, squeeze=False, sharex=True, sharey=True)
    for pair, channel in enumerate(shown):
        norm, colors = field_scale(torch.cat(list(rows.values()))[:, channel].numpy())
        panels = grid[2 * pair : 2 * pair + 2]
        for row, name in zip(panels, rows, strict=True):
            for column, panel in enumerate(row):
                field = _image(panel, rows[name][column, channel].numpy(), pde, norm, colors)
            _write_in_corner(row[-1], "real data")
            row[0].set_ylabel(f"{name}: {pde.channels[channel]}\n{_axis_label(pde.grid.rows)}", color=COLORS[name])
        label = f"{pde.channels[channel]} (physical units)"
        part.colorbar(field, ax=panels.ravel().tolist(), label=label, aspect=30, pad=0.01)
    if operator:
        maps = {name: residual_size(pde, fields, operator) for name, fields in rows.items()}
        _draw_residual_maps(part, grid[-2:], pde, maps, operator)
    for column in range(count + 1):
        grid[0][column].set_title(f"noise {column}" if column < count else "two samples of real data", fontsize=11)
        grid[-1][column].set_xlabel(_axis_label(pde.grid.columns))


def _draw_residual_maps(part: SubFigure, panels: np.ndarray, pde: PDE, maps: Mapping[str, np.ndarray], operator: str) -> None:
    norm = map_scale(np.concatenate([m[:-1] for m in maps.values()]))
    for row, (name, sizes) in zip(panels, maps.items(), strict=True):
        for panel, size in zip(row, sizes, strict=True):
            residual = _image(panel, size, pde, norm, "magma")
            _write_in_corner(panel, f"mean square {np.mean(size**2):.2g}")
        row[0].set_ylabel(f"{name}: |residual|\n{_axis_label(pde.grid.rows)}", color=COLORS[name])
    label = f"|residual|, {operator} operator"
    part.colorbar(residual, ax=panels.ravel().tolist(), label=label, aspect=30, pad=0.01, extend="both")


def _axis_label(axis: Axis) -> str:
    return f"{axis.name}  in [0, {axis.extent:.4g}]"


def _image(axes: Axes, values: np.ndarray, pde: PDE, norm: Normalize, colors: str) -> AxesImage:
    extent = (0.0, pde.grid.columns.extent, 0.0, pde.grid.rows.extent)
    return axes.imshow(values, norm=norm, cmap=colors, origin="lower", aspect="auto", extent=extent, interpolation="nearest")


def _write_in_corner(axes: Axes, text: str) -> None:
    """Write text in the upper right corner of a panel."""
    box = {"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1.5}
    axes.text(0.97, 0.95, text, transform=axes.transAxes, ha="right", va="top", fontsize=8, bbox=box)


def residual_size(pde: PDE, fields: torch.Tensor, operator: str) -> np.ndarray:
    """Return the root mean square of each sample's residual map over its components, (b, h', w')."""
    with torch.no_grad():
        return pde.residual_map(fields, operator).square().mean(1).sqrt().numpy()


def field_scale(values: np.ndarray) -> tuple[Normalize, str]:
    """Return the scale and the colour map of fields: symmetric and diverging if they have both signs, otherwise sequential."""
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, (0.002, 0.998)) if finite.size else (0.0, 1.0)
    if low < 0 < high and -low > 0.1 * high and high > -0.1 * low:
        bound = max(-low, high)
        return Normalize(-bound, bound), "RdBu_r"
    return Normalize(low, high), "viridis"


def map_scale(values: np.ndarray) -> LogNorm:
    """Return the logarithmic scale of residual maps, over at most DECADES decades."""
    finite = values[np.isfinite(values) & (values > 0)]
    low, high = np.quantile(finite, (0.02, 0.998)) if finite.size else (0.1, 1.0)
    return LogNorm(max(low, high * 10.0**-DECADES), max(high, low * 10))


def _draw_statistics(
    part: SubFigure, pde: PDE, samples: Mapping[str, torch.Tensor], result: EvaluationResult, operator: str
) -> None:
    columns, rows, *histogram = part.subplots(1, 3 if operator else 2)
    solution = len(pde.channels) - 1
    _draw_spectrum(columns, pde, -1, pde.input_channels[0] if pde.inputs else solution, samples)
    _draw_spectrum(rows, pde, -2, solution, samples)
    for axes in histogram:
        _draw_histogram(axes, pde, samples, result, operator)


def _draw_spectrum(axes: Axes, pde: PDE, dimension: int, channel: int, samples: Mapping[str, torch.Tensor]) -> None:
    """Draw the power of one channel along one axis, without k = 0 and without powers of rounding. k: cycles over the axis."""
    axis = (pde.grid.rows, pde.grid.columns)[dimension]
    periodic = axis.layout == "periodic"
    largest = smallest = 0.0
    for name in SETS:
        power = spectra.spectrum(samples[name], dimension, periodic=periodic)[channel, 1:].numpy()
        axes.plot(np.arange(1, len(power) + 1), power, STYLES[name], color=COLORS[name], label=LABELS[name], lw=1.8)
        if name == "data":
            largest, smallest = power.max(), power[:-1].min()
    window = "" if periodic else ", Hann window"
    name = pde.channels[channel]
    axes.set(title=f"Spectrum of {name} along {axis.name}{window}", xlabel=f"wavenumber along {axis.name} (cycles over the axis)")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.set(yscale="log", ylabel="mean power (units²)")
    if largest > 0:
        axes.set_ylim(bottom=max(smallest / 10, largest * spectra.POWER_FLOOR))
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8.5)


def _draw_histogram(axes: Axes, pde: PDE, samples: Mapping[str, torch.Tensor], result: EvaluationResult, operator: str) -> None:
    """Draw the residuals of the shown samples in common logarithmic bins, and the floor."""
    with torch.no_grad():
        residuals = {name: pde.residual(samples[name], operator).numpy() for name in SETS}
    positive = {name: values[np.isfinite(values) & (values > 0)] for name, values in residuals.items()}
    generated = np.concatenate([positive["base"], positive["tuned"]])
    floor = result.data.residuals[operator].mean
    hidden = bool(generated.size) and _far_below(floor, generated.min())
    shown = [name for name in SETS if not (hidden and name == "data")]
    together = np.concatenate([positive[name] for name in shown])
    low, high = (together.min(), together.max()) if together.size else (0.1, 1.0)
    bins = np.geomspace(low / 1.1, high * 1.1, 61)
    for name in shown:
        label = f"{LABELS[name]} (n = {len(residuals[name])})"
        axes.hist(positive[name], bins.tolist(), color=COLORS[name], alpha=0.25)
        axes.hist(positive[name], bins.tolist(), color=COLORS[name], histtype="step", ls=STYLES[name], lw=1.6, label=label)
    if hidden:
        axes.plot([], [], " ", label=_off_axis_label(floor))
    elif np.isfinite(floor) and floor > 0:
        axes.axvline(floor, color=COLORS["data"], ls=":", lw=1.5, label="floor: real data, mean")
    axes.set(title=f"Residual of each sample ({operator})", xlabel="mean square residual", ylabel="samples", xscale="log")
    if high > 10 * low:
        axes.xaxis.set_minor_formatter(NullFormatter())  # labels between the decades would overlap
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8.5)
