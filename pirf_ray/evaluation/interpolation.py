"""The frontier of weight interpolation: samples of theta_0 + alpha (theta - theta_0), theta_0 the base and theta a run's weights.

alpha = 0 is the base model, 1 the run's, between and beyond lie residual and fidelity traded against each other without any
training (Wortsman et al. 2022, arXiv 2109.01903). The samples are not corrected: it is the weights that are looked at.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from envs import seeding
from envs.denoising import DenoisingProcess
from envs.pdes import PDE
from pirf_ray.config import GuardSettings, SamplerSettings
from pirf_ray.evaluation.figures import evaluate_sets
from pirf_ray.evaluation.run import EVALUATION_STREAM, Progress, held_out
from pirf_ray.guard import Departure, Likeness
from pirf_ray.policy import Policy
from pirf_ray.rollout import advance, finish

MOST = 101
"""Alphas at most: more is a mistyped step."""


def parse_alphas(text: str) -> list[float]:
    """``start:stop:step``, stop included. ValueError names the flag."""
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
    return alphas if 0.0 in alphas else [0.0, *alphas]  # what everything is compared with


def between(base: dict[str, torch.Tensor], tuned: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """theta_0 + alpha (theta - theta_0) of each tensor; the very bits of the ends at 0 and 1."""
    if alpha in (0.0, 1.0):
        return tuned if alpha else base
    return {name: base[name] + alpha * (tuned[name] - base[name]) for name in tuned}


@torch.no_grad()
def sample_alphas(
    policy: Policy,
    process: DenoisingProcess,
    pde: PDE,
    alphas: Sequence[float],
    *,
    samples: int,
    seed: int,
    batch: int,
    progress: Progress,
) -> dict[float, torch.Tensor]:
    """Fields (samples, c, h, w), physical units, of each alpha from the same noise; what the base makes of them is made once.

    The policy's tuned weights are a run's, before and after.
    """
    own = dict(policy.tuned.network.named_parameters())
    base = {name: p.detach().clone() for name, p in policy.base.network.named_parameters()}
    tuned = {name: p.detach().clone() for name, p in own.items()}
    device = next(policy.base.parameters()).device
    shared = policy.switch_step(process)
    made: dict[float, list[torch.Tensor]] = {alpha: [] for alpha in alphas}
    for ids in progress(list(seeding.chunks(samples, batch))):
        noise = seeding.normal(seed, EVALUATION_STREAM, ids, pde.shape).float().to(device)
        start = advance(process, policy.base_from, process.initial(noise), shared)
        for alpha, parts in made.items():
            policy.load_learned(between(base, tuned, alpha))
            parts.append(finish(process, policy.denoisers(process), start).cpu())
    policy.load_learned(tuned)
    return {alpha: pde.normalizer.to_physical(torch.cat(parts).float()) for alpha, parts in made.items()}


@dataclass(frozen=True, kw_only=True)
class Frontier:
    """Figures of each alpha, and the best one inside the guard's limits (None if none is inside)."""

    result: dict[str, Any]
    departures: dict[float, Departure]
    best: float | None

    def to_json(self) -> dict[str, Any]:
        points = [
            {"alpha": alpha, "departure": vars(departure), "figures": self.result[str(alpha)]}
            for alpha, departure in self.departures.items()
        ]
        return {
            **{k: v for k, v in self.result.items() if k not in map(str, self.departures)},
            "points": points,
            "best_alpha": self.best,
        }


def best_alpha(residuals: dict[float, float], inside: dict[float, bool]) -> float | None:
    """The alpha of the lowest residual among those inside."""
    allowed = [alpha for alpha, yes in inside.items() if yes and math.isfinite(residuals[alpha])]
    return min(allowed, key=lambda alpha: residuals[alpha]) if allowed else None


def interpolate(
    pde: PDE,
    policy: Policy,
    sampler: SamplerSettings,
    limits: GuardSettings,
    alphas: Sequence[float],
    *,
    samples: int,
    real: int,
    seed: int,
    data: Path | None,
    batch: int,
    progress: Progress,
    rewarded: str,
) -> Frontier:
    """Sample each alpha (0 among them), measure, and find the best inside the limits."""
    truth = held_out(pde, count=real + samples, seed=seed, data=data)
    process = DenoisingProcess(sampler.num_steps, sampler.solver)
    sets = sample_alphas(policy, process, pde, alphas, samples=samples, seed=seed, batch=batch, progress=progress)
    named = {str(alpha): fields for alpha, fields in sets.items()}
    result = evaluate_sets(pde, named, real=truth[:real], real_other=truth[real:], rewarded=rewarded)
    result["sampler"] = {"num_steps": sampler.num_steps, "solver": sampler.solver, "nfe": process.num_evaluations}
    result["seed"] = seed
    likeness = {alpha: Likeness.of(fields, truth[:real], pde) for alpha, fields in sets.items()}
    departures = {alpha: Departure.between(mine, likeness[0.0]) for alpha, mine in likeness.items()}
    key = f"residual/{rewarded}"
    residuals = {alpha: result[str(alpha)][f"{key}/mean"] for alpha in alphas}
    inside = {a: departures[a].inside(limits) and not result[str(a)][f"{key}/below_floor"] for a in alphas}
    return Frontier(result=result, departures=departures, best=best_alpha(residuals, inside))


def frontier_table(frontier: Frontier) -> Table:
    """A row an alpha; the best one is marked."""
    result = frontier.result
    rewarded, witness = result["rewarded_operator"], result["unrewarded_operator"]
    table = Table(title=f"{result['env_id']}: theta_0 + alpha (theta - theta_0), {result['num_samples']} samples, no corrections")
    names = [
        f"{rewarded} residual",
        "median",
        f"{witness} residual",
        "re-solve error",
        "amplitude / base",
        "energy / base",
        "spectrum rise",
    ]
    for name in ("alpha", *names):
        table.add_column(name, justify="right")
    for alpha, departure in frontier.departures.items():
        figures = result[str(alpha)]
        keys = (f"residual/{rewarded}/mean", f"residual/{rewarded}/median", f"residual/{witness}/mean", "resolve/median")
        cells = [f"{figures[key]:.3g}" for key in keys]
        cells += [f"{departure.amplitude_ratio:.3f}", f"{departure.energy_ratio:.3f}", f"{departure.spectrum_rise:+.3f}"]
        best = alpha == frontier.best
        table.add_row(f"{alpha:g}{' best' if best else ''}", *cells, style="bold" if best else None)
    return table


def draw_frontier(path: Path, frontier: Frontier, limits: GuardSettings) -> None:
    """Residual against energy distance over the base's, a point an alpha."""
    from matplotlib.figure import Figure

    from pirf_ray.evaluation.pages import save

    result = frontier.result
    operator = result["rewarded_operator"]
    figure = Figure(figsize=(7, 5), layout="constrained", dpi=110)
    axes = figure.subplots()
    title = f"{result['env_id']}: theta_0 + alpha (theta - theta_0)"
    axes.set(title=title, yscale="log", xlabel="energy distance / base", ylabel=f"mean residual, {operator} operator")
    xs = [departure.energy_ratio for departure in frontier.departures.values()]
    ys = [result[str(alpha)][f"residual/{operator}/mean"] for alpha in frontier.departures]
    axes.plot(xs, ys, "o-", color="#0072B2", lw=1, ms=5)
    for alpha, x, y in zip(frontier.departures, xs, ys, strict=True):
        axes.annotate(f"{alpha:g}", (x, y), textcoords="offset points", xytext=(6, 3), fontsize=8)
        if alpha == frontier.best:
            axes.plot(x, y, "*", color="#D55E00", ms=16, label=f"best inside the guard's limits: alpha = {alpha:g}")
    axes.axvline(limits.guard_energy, color="#999999", ls="-.", label="guard's limit on energy distance")
    floor = result["data"][f"residual/{operator}/mean"]
    if floor > min(ys) / 100:
        axes.axhline(floor, color="k", ls="--", lw=1, label="real data")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=9)
    save(figure, path, dpi=figure.dpi)
