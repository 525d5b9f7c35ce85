"""Plots of a sweep: frontier, importance of each parameter, parallel coordinates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from envs.common.search import Choice, Range, Spec, Value
from pirf_ray.evaluation.pages import save
from tune.goals import kept
from tune.search_space import SearchSpace
from tune.studies import metrics_of
from tune.trial_log import short

BEST, PRESET, INSIDE, OUTSIDE = "#D55E00", "#000000", "#0072B2", "#999999"
MISSING = -0.12
"""Height of a value that a trial does not have: the layer mode if all layers learn."""


def draw_frontier(path: Path, trials: Sequence[FrozenTrial], *, best: int, preset: int | None, limit: float | None) -> None:
    """Draw residual against energy distance over the base model's, of finished trials.

    ``limit``: the guard's limit on the energy distance.
    """
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    numbers: dict[tuple[float, float], list[int]] = {}  # trials that kept the base model are one point
    for trial in trials:
        metrics = metrics_of(trial)
        point = metrics.energy_ratio, metrics.residual
        numbers.setdefault(point, []).append(trial.number)
        _draw_trial(axes, point, inside=kept(trial.constraints), best=trial.number == best, preset=trial.number == preset)
    for point, here in numbers.items():
        axes.annotate(", ".join(map(str, here)), point, textcoords="offset points", xytext=(7, 3), fontsize=8)
    axes.plot([], [], "s", ls="", mfc="none", mec=PRESET, ms=10, label="preset")
    for label, marker, color in (("best", "*", BEST), ("inside the limits", "o", INSIDE), ("outside", "X", OUTSIDE)):
        axes.plot([], [], marker, ls="", color=color, label=label)
    if limit is not None:
        axes.axvline(limit, color=OUTSIDE, ls="-.", lw=1, label="guard's limit on energy distance")
    if any(residual > 0 for _, residual in numbers):
        axes.set_yscale("log")
    axes.set(
        xlabel="energy distance / base model's", ylabel="mean square residual", title="Finished trials: lower left is better"
    )
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=9)
    save(figure, path)


def _draw_trial(axes: Axes, point: tuple[float, float], *, inside: bool, best: bool, preset: bool) -> None:
    color, marker, size = (INSIDE, "o", 7) if inside else (OUTSIDE, "X", 7)
    if best:
        color, marker, size = BEST, "*", 15
    axes.plot(*point, marker, color=color, ms=size, mec="white", mew=0.5)
    if preset:
        axes.plot(*point, "s", mfc="none", mec=PRESET, ms=17)


def draw_importance(path: Path, importance: dict[str, dict[str, float]], trials: int) -> None:
    """Draw bars by parameter, in a panel for each value that is minimized. ``trials``: the number of finished trials."""
    figure = Figure(figsize=(5.5 * len(importance), 0.45 * max(map(len, importance.values())) + 1.6), layout="constrained")
    for axes, (value, shares) in zip(figure.subplots(1, len(importance), squeeze=False)[0], importance.items(), strict=True):
        names = sorted(shares, key=lambda name: shares[name])
        axes.barh(names, [shares[name] for name in names], color=INSIDE)
        for i, name in enumerate(names):
            axes.annotate(f" {shares[name]:.2f}", (shares[name], i), va="center", fontsize=9)
        axes.set(
            xlim=(0, 1.1 * max(*shares.values(), 0.1)),
            xlabel=f"share, of {value}",
            title=f"Importance ({trials} finished trials)",
        )
    save(figure, path)


def draw_parallel(path: Path, trials: Sequence[FrozenTrial], space: SearchSpace, *, best: int, value_name: str) -> None:
    """Draw each trial as a line through its values; the lines of stopped and failed trials are dotted."""
    names = space.searched()
    values = {t.number: t.values[0] for t in trials if t.state == TrialState.COMPLETE}
    norm = Normalize(min(values.values()), max(values.values())) if values else Normalize()
    figure = Figure(figsize=(1.7 * len(names) + 2.5, 5), layout="constrained")
    axes = figure.subplots()
    colors = colormaps["viridis"]
    for trial in sorted(trials, key=lambda t: t.number == best):
        heights = [_height(space.specs[name], trial.params.get(name)) for name in names]
        if trial.number not in values:
            axes.plot(range(len(names)), heights, ":", color=OUTSIDE, lw=1, zorder=1)
        elif trial.number == best:
            axes.plot(range(len(names)), heights, color=BEST, lw=3.5, zorder=4, label=f"best, trial {best}")
        else:
            axes.plot(range(len(names)), heights, color=colors(norm(values[trial.number])), lw=1.6, zorder=2)
    for i, name in enumerate(names):
        _draw_axis(axes, i, space.specs[name], name)
    axes.set_xticks(range(len(names)), [name.replace("_", "\n") for name in names])
    axes.set(
        xlim=(-0.3, len(names) - 0.2), ylim=(MISSING - 0.08, 1.08), yticks=[], title="Trials; dotted: stopped early or failed"
    )
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_visible(False)
    if values:
        figure.colorbar(ScalarMappable(norm, colors), ax=axes, label=value_name, pad=0.02)
        axes.legend(loc="lower right", fontsize=9)
    save(figure, path)


def _height(spec: Spec, value: Value | None) -> float:
    """Return the place of a value on its axis, from 0 to 1."""
    if value is None:
        return MISSING
    if isinstance(spec, Choice):
        return spec.values.index(value) / max(1, len(spec.values) - 1) if value in spec.values else MISSING
    if isinstance(spec, Range) and not isinstance(value, str):
        low, high, at = np.log([spec.low, spec.high, value]) if spec.log else (spec.low, spec.high, value)
        return float((at - low) / (high - low))
    return MISSING


def _draw_axis(axes: Axes, i: int, spec: Spec, name: str) -> None:
    axes.plot([i, i], [0, 1], color="#444444", lw=1, zorder=3)
    for value in spec.ends():
        axes.annotate(
            short(value), (i, _height(spec, value)), textcoords="offset points", xytext=(4, 2), fontsize=8, zorder=5,
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    if name == "layer_mode":
        axes.annotate("all layers", (i, MISSING), textcoords="offset points", xytext=(4, -4), fontsize=8, color="#666666")
