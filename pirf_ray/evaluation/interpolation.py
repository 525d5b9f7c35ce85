"""The frontier of weight interpolation (Wortsman et al. 2022, arXiv 2109.01903): residual against fidelity without training.

    theta(alpha) = theta_0 + alpha (theta - theta_0),  theta_0 the weights of the base model, theta the weights of a run

alpha = 0 is the base model, alpha = 1 the run's model. The samples are not corrected, so only the weights differ.
"""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from envs.common.checks import ConfigError
from envs.pdes.base import require
from pirf_ray.diffusion.denoiser import AbstractDenoiser, Denoiser
from pirf_ray.diffusion.model import Model
from pirf_ray.diffusion.sampling import Progress, advance, finish, noise_batches
from pirf_ray.evaluation.models import EVALUATION_STREAM, held_out, sampler_record
from pirf_ray.metrics.drift import Drift, DriftLimits, FidelityStatistics
from pirf_ray.metrics.evaluation import evaluate_sets
from pirf_ray.metrics.results import EvaluationResult, SetMetrics

MOST = 101
"""Largest number of alphas. A larger number is taken for a mistyped step."""


def parse_alphas(text: str) -> list[float]:
    """Return the alphas of ``start:stop:step`` with stop, and 0 if it is missing. ValueError names the flag."""
    try:
        start, stop, step = (float(part) for part in text.split(":"))
    except ValueError:
        raise ValueError(f"--interpolate must be START:STOP:STEP such as 0:1:0.1, got {text!r}") from None
    if not (all(map(math.isfinite, (start, stop, step))) and step > 0 and stop >= start):
        raise ValueError(f"--interpolate needs finite numbers, STEP > 0 and STOP >= START, got {text!r}")
    count = int((stop - start) / step + 1e-9) + 1
    if count > MOST:
        raise ValueError(f"--interpolate {text} is {count} values, at most {MOST} are allowed")
    alphas = [round(start + i * step, 10) for i in range(count)]
    return alphas if 0.0 in alphas else [0.0, *alphas]  # every alpha is compared with 0


def between(base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """Return theta_0 + alpha (theta - theta_0) of each tensor. alpha 0 and 1 give the same bits as ``base`` and ``tuned``."""
    if alpha in (0.0, 1.0):
        return tuned if alpha else base
    return {name: base[name] + alpha * (tuned[name] - base[name]) for name in tuned}


def network_weights(denoiser: AbstractDenoiser, names: Iterable[str]) -> dict[str, torch.Tensor]:
    """Return weights of a network by their names. Low-rank factors are merged into their weights.

    ConfigError if the denoiser is more than a network.
    """
    if not isinstance(denoiser, Denoiser):
        raise ConfigError(f"--interpolate needs a run that tuned the weights of the network, got a {type(denoiser).__name__}")
    places = {name: name.rpartition(".") for name in names}
    return {name: getattr(denoiser.network.get_submodule(m), own).detach().clone() for name, (m, _, own) in places.items()}


@torch.no_grad()
def sample_alphas(
    model: Model, alphas: Sequence[float], *, samples: int, seed: int, batch: int, progress: Progress
) -> dict[float, torch.Tensor]:
    """Return the fields (samples, c, h, w) of each alpha, physical units, all from the same noise.

    The steps of the base model are made once. The model stays as it is.
    """
    process, pde = model.process, model.pde
    names = list(model.policy.base.tensors())
    base, tuned = network_weights(model.policy.base, names), network_weights(model.policy.tuned, names)
    policy = copy.copy(model.policy)
    policy.tuned = copy.deepcopy(policy.base)
    shared = policy.switch_step(process)
    made: dict[float, list[torch.Tensor]] = {alpha: [] for alpha in alphas}
    noises = noise_batches(
        pde.shape,
        seed=seed,
        stream=EVALUATION_STREAM,
        sample_ids=range(samples),
        batch=batch,
        device=policy.device,
        progress=progress,
    )
    for noise in noises:
        start = advance(process, policy.base_from, process.initial(noise), shared)
        for alpha, parts in made.items():
            policy.load_learned(between(base, tuned, alpha))
            parts.append(finish(process, policy.denoisers(process), start).cpu())
    return {alpha: pde.normalizer.to_physical(torch.cat(parts).float()) for alpha, parts in made.items()}


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Metrics and drift of each alpha, and the best alpha."""

    result: EvaluationResult
    """Metrics of sets that are named by their alphas."""
    drifts: dict[float, Drift]
    """Drift of each alpha."""
    best: float | None
    """Alpha with the lowest residual inside the guard's limits. None if no alpha is inside."""

    def metrics(self, alpha: float) -> SetMetrics:
        """Return the metrics of one alpha."""
        return self.result[str(alpha)]

    def to_json(self) -> dict[str, Any]:
        """Return the frontier as ``evaluate --interpolate --out`` writes it."""
        alphas = set(map(str, self.drifts))
        points = [
            {"alpha": alpha, "drift": vars(drift), "metrics": self.metrics(alpha).to_json()}
            for alpha, drift in self.drifts.items()
        ]
        shared = {name: value for name, value in self.result.to_json().items() if name not in alphas}
        return {**shared, "points": points, "best_alpha": self.best}


def best_alpha(residuals: dict[float, float], inside: dict[float, bool]) -> float | None:
    """Return the alpha with the lowest finite residual among the alphas inside. None if there is no such alpha."""
    allowed = [alpha for alpha, yes in inside.items() if yes and math.isfinite(residuals[alpha])]
    return min(allowed, key=lambda alpha: residuals[alpha]) if allowed else None


def interpolate(
    model: Model,
    limits: DriftLimits,
    alphas: Sequence[float],
    *,
    samples: int,
    real: int,
    seed: int,
    data: Path | None,
    batch: int,
    progress: Progress,
) -> Frontier:
    """Return the frontier of the alphas, which must contain 0. NotProvided if the PDE has no residual operator."""
    require(model.pde, "operators", "--interpolate, which compares residuals,")
    pde, rewarded = model.pde, model.rewarded_operator
    truth = held_out(pde, count=real + samples, seed=seed, data=data)
    sets = sample_alphas(model, alphas, samples=samples, seed=seed, batch=batch, progress=progress)
    named = {str(alpha): fields for alpha, fields in sets.items()}
    result = evaluate_sets(pde, named, real=truth[:real], real_other=truth[real:], rewarded=rewarded)
    result = replace(result, sampler=sampler_record(replace(model, finisher=None)), seed=seed)
    measured = {alpha: FidelityStatistics.of(fields, truth[:real], pde) for alpha, fields in sets.items()}
    drifts = {alpha: Drift.between(mine, measured[0.0]) for alpha, mine in measured.items()}
    residuals = {alpha: result[str(alpha)].residuals[rewarded] for alpha in alphas}
    inside = {alpha: drifts[alpha].inside(limits) and not residuals[alpha].below_floor for alpha in alphas}
    return Frontier(result=result, drifts=drifts, best=best_alpha({alpha: r.mean for alpha, r in residuals.items()}, inside))


def frontier_table(frontier: Frontier) -> Table:
    """Return a table with one row per alpha. The best alpha is marked."""
    result = frontier.result
    rewarded, unrewarded = result.rewarded_operator, result.unrewarded_operator
    table = Table(title=f"{result.env_id}: theta_0 + alpha (theta - theta_0), {result.num_samples} samples, no corrections")
    columns: dict[str, Callable[[SetMetrics], float | None]] = {
        f"{rewarded} residual": lambda metrics: metrics.residuals[rewarded].mean,
        "median": lambda metrics: metrics.residuals[rewarded].median,
        **({f"{unrewarded} residual": lambda metrics: metrics.residuals[unrewarded].mean} if unrewarded else {}),
        "re-solve error": lambda metrics: metrics.resolve_median,
    }
    known = {name: value for name, value in columns.items() if value(result.data) is not None}
    for name in ("alpha", *known, "amplitude / base", "energy / base", "spectrum rise"):
        table.add_column(name, justify="right")
    for alpha, drift in frontier.drifts.items():
        metrics = frontier.metrics(alpha)
        cells = [f"{value(metrics):.3g}" for value in known.values()]
        cells += [f"{drift.amplitude_ratio:.3f}", f"{drift.energy_ratio:.3f}", f"{drift.spectrum_rise:+.3f}"]
        best = alpha == frontier.best
        table.add_row(f"{alpha:g}{' best' if best else ''}", *cells, style="bold" if best else None)
    return table


def draw_frontier(path: Path, frontier: Frontier, limits: DriftLimits) -> None:
    """Plot residual against energy distance, divided by the base model's, with one point per alpha."""
    from matplotlib.figure import Figure

    from pirf_ray.evaluation.pages import save

    result = frontier.result
    operator = result.rewarded_operator
    figure = Figure(figsize=(7, 5), layout="constrained", dpi=110)
    axes = figure.subplots()
    title = f"{result.env_id}: theta_0 + alpha (theta - theta_0)"
    axes.set(title=title, yscale="log", xlabel="energy distance / base", ylabel=f"mean residual, {operator} operator")
    xs = [drift.energy_ratio for drift in frontier.drifts.values()]
    ys = [frontier.metrics(alpha).residuals[operator].mean for alpha in frontier.drifts]
    axes.plot(xs, ys, "o-", color="#0072B2", lw=1, ms=5)
    for alpha, x, y in zip(frontier.drifts, xs, ys, strict=True):
        axes.annotate(f"{alpha:g}", (x, y), textcoords="offset points", xytext=(6, 3), fontsize=8)
        if alpha == frontier.best:
            axes.plot(x, y, "*", color="#D55E00", ms=16, label=f"best inside the guard's limits: alpha = {alpha:g}")
    axes.axvline(limits.guard_energy, color="#999999", ls="-.", label="guard's limit on energy distance")
    floor = result.data.residuals[operator].mean
    if floor > min(ys) / 100:
        axes.axhline(floor, color="k", ls="--", lw=1, label="real data")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    save(figure, path, dpi=figure.dpi)
