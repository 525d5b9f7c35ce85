"""A sweep's pictures: frontier, importance of each parameter, parallel coordinates."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from optuna.trial import FrozenTrial, TrialState

from pirf_ray.evaluation.pages import save
from tune.search_space import SearchSpace
from tune.specs import Choice, Range, Value
from tune.studies import FIGURES

BEST, PRESET, INSIDE, OUTSIDE = "#D55E00", "#000000", "#0072B2", "#999999"
MISSING = -0.12
"""Height of a value that a trial does not have: the layer mode where all layers learn."""


def draw_frontier(path: Path, trials: Sequence[FrozenTrial], *, best: int, preset: int, limit: float | None) -> None:
    """Residual against energy distance over the base model's, of finished trials. ``limit``: the guard's on the latter."""
    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.subplots()
    at: dict[tuple[float, float], list[int]] = {}  # runs that kept the base model are one point
    for trial in trials:
        f = trial.user_attrs[FIGURES]
        x, y = float(f["energy_ratio"]), float(f["residual"])
        inside = all(value <= 0 for value in trial.constraints.values())
        color, marker, size = (INSIDE, "o", 7) if inside else (OUTSIDE, "X", 7)
        if trial.number == best:
            color, marker, size = BEST, "*", 15
        axes.plot(x, y, marker, color=color, ms=size, mec="white", mew=0.5)
        if trial.number == preset:
            axes.plot(x, y, "s", mfc="none", mec=PRESET, ms=17)
        at.setdefault((x, y), []).append(trial.number)
    for point, numbers in at.items():
        axes.annotate(", ".join(map(str, numbers)), point, textcoords="offset points", xytext=(7, 3), fontsize=8)
    axes.plot([], [], "s", ls="", mfc="none", mec=PRESET, ms=10, label="preset")
    for label, marker, color in (("best", "*", BEST), ("inside the limits", "o", INSIDE), ("outside", "X", OUTSIDE)):
        axes.plot([], [], marker, ls="", color=color, label=label)
    if limit is not None:
        axes.axvline(limit, color=OUTSIDE, ls="-.", lw=1, label="guard's limit on energy distance")
    if any(float(t.user_attrs[FIGURES]["residual"]) > 0 for t in trials):
        axes.set_yscale("log")
    axes.set(
        xlabel="energy distance / base model's", ylabel="mean square residual", title="Finished trials: lower left is better"
    )
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=9)
    save(figure, path)


def draw_importance(path: Path, importance: dict[str, dict[str, float]], trials: int) -> None:
    """Bars by parameter, a panel for each value that is minimized."""
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
    """Each trial a line through its values; stopped and failed ones are dotted."""
    names = [name for name, spec in space.specs.items() if not spec.fixed]
    finished = [t for t in trials if t.state == TrialState.COMPLETE]
    values = {t.number: t.values[0] for t in finished}
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
        _axis(axes, i, space, name)
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


def _height(spec: object, value: Value | None) -> float:
    """Where on its axis, from 0 to 1."""
    if value is None:
        return MISSING
    if isinstance(spec, Choice):
        return spec.values.index(value) / max(1, len(spec.values) - 1) if value in spec.values else MISSING
    if isinstance(spec, Range) and not isinstance(value, str):
        low, high, at = np.log([spec.low, spec.high, value]) if spec.log else (spec.low, spec.high, value)
        return float((at - low) / (high - low))
    return MISSING


def _axis(axes: Axes, i: int, space: SearchSpace, name: str) -> None:
    spec = space.specs[name]
    axes.plot([i, i], [0, 1], color="#444444", lw=1, zorder=3)
    for value in spec.ends():
        text = value if isinstance(value, str) else f"{value:.3g}"
        axes.annotate(
            text, (i, _height(spec, value)), textcoords="offset points", xytext=(4, 2), fontsize=8, zorder=5,
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 0.5},
        )  # fmt: skip
    if name == "layer_mode":
        axes.annotate("all layers", (i, MISSING), textcoords="offset points", xytext=(4, -4), fontsize=8, color="#666666")
