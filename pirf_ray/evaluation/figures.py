"""The figures of a run: every measure of every set of samples, with real data evaluated beside them in the same way.

A result is a JSON-able dict: ``result[set][figure]`` for the sets in ``result["sets"]`` (the generated ones and ``data``),
with names ``residual/<operator>/mean``, ``condition/<name>/mean``, ``resolve/median``, ``fidelity/energy_distance``.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from rich.table import Table
from rich.text import Text

from envs import seeding
from envs.pdes import PDE
from pirf_ray.evaluation import fidelity

DATA = "data"
BATCH = 64
PROBE_NOISE = 1e-3
Result = dict[str, Any]
Figures = dict[str, Any]
Measure = Callable[[torch.Tensor], torch.Tensor]


def evaluate_sets(
    pde: PDE,
    sets: Mapping[str, torch.Tensor],
    *,
    real: torch.Tensor,
    real_other: torch.Tensor,
    rewarded: str | None = None,
    seed: int = 0,
) -> Result:
    """Figures of each set (n, c, h, w) against the held-out fields ``real`` (m, c, h, w), physical units.

    ``real_other``, held-out fields disjoint from ``real``, is evaluated exactly like a generated set, cut to the same n:
    its figures stand under ``data``. Only its residuals, which do not depend on n, are of all held-out fields: their means are
    the floors, and 48 windows of a flow may be of two trajectories. ``rewarded``: the operator that was rewarded (default: the
    PDE's default). Intervals are 95% bootstrap intervals over samples, of held-out fields over what is solved together
    (``pde.solved_together``). A sample whose residual or error is not finite counts as infinitely wrong; a set that holds one
    has fidelity nan.
    """
    count = _common_count(sets, real_other)
    all_sets = {**sets, DATA: real_other[:count]}
    values = {name: per_sample(pde, fields) for name, fields in all_sets.items()}
    block = pde.solved_together
    values[DATA] |= _measured(residual_measures(pde), torch.cat([real.cpu(), real_other.cpu()]))
    columns = {name: values[DATA][f"residual/{name}"] for name in pde.operators}
    floors = {name: column.mean().item() for name, column in columns.items()}
    lows = {name: fidelity.bootstrap_interval(column, "mean", seed=seed, block=block)[0] for name, column in columns.items()}
    slopes = {name: noise_sensitivity(pde, all_sets[DATA], name, seed=seed) for name in pde.operators}
    result: Result = {
        "env_id": pde.env_id,
        "resolution": pde.resolution,
        "operators": _operator_order(pde),
        "default_operator": pde.default_operator,
        "unrewarded_operator": pde.unrewarded_operator,
        "rewarded_operator": rewarded or pde.default_operator,
        "conditions": list(pde.conditions),
        "channels": list(pde.channels),
        "num_samples": count,
        "num_real": len(real),
        "sets": list(all_sets),
    }
    for name, fields in all_sets.items():
        figures: Figures = {"num_samples": count, "num_nonfinite": _count_nonfinite(fields)}
        together = block if name == DATA else 1
        figures |= _physics_figures(values[name], floors, lows, is_data=name == DATA, seed=seed, block=together)
        figures |= {
            f"residual/{operator}/noise_equivalent": noise_equivalent(
                figures[f"residual/{operator}/mean"], floors[operator], slope
            )
            for operator, slope in slopes.items()
        }
        result[name] = figures | fidelity_figures(pde, fields, real)
    reference = result[DATA]["fidelity/energy_distance"]
    for name in all_sets:
        result[name]["fidelity/energy_distance_ratio_to_data"] = result[name]["fidelity/energy_distance"] / reference
    return result


def _common_count(sets: Mapping[str, torch.Tensor], real_other: torch.Tensor) -> int:
    if not sets:
        raise ValueError("sets must hold at least one set of samples, got none")
    if DATA in sets:
        raise ValueError(f"the name {DATA!r} is kept for real data; give those fields as real_other")
    counts = {name: len(fields) for name, fields in sets.items()}
    count = min(counts.values())
    if len(set(counts.values())) > 1 or count < 2:
        raise ValueError(f"sets must have the same number of samples, at least 2: energy distances depend on it; got {counts}")
    if len(real_other) < count:
        raise ValueError(f"real_other must hold at least as many samples as each set, {count}, got {len(real_other)}")
    return count


def _operator_order(pde: PDE) -> list[str]:
    """The default operator, the unrewarded one, the others."""
    first = [pde.default_operator, pde.unrewarded_operator]
    return first + [name for name in pde.operators if name not in first]


def _count_nonfinite(fields: torch.Tensor) -> int:
    return int((~fields.isfinite().flatten(1).all(1)).sum())


def residual_measures(pde: PDE) -> dict[str, Measure]:
    """Mean square residual (b,) of each operator."""
    return {f"residual/{name}": lambda x, name=name: pde.residual(x, name) for name in pde.operators}  # type: ignore[misc]


def per_sample(pde: PDE, fields: torch.Tensor) -> dict[str, torch.Tensor]:
    """Mean square residual of each operator, violation of each condition, re-solve errors: (n,) each, from float64 fields."""
    measures: dict[str, Measure] = {
        **residual_measures(pde),
        **{f"condition/{name}": condition for name, condition in pde.conditions.items()},
        "resolve": pde.resolve_error,
        "resolve/trivial": pde.trivial_resolve_error,
    }
    return _measured(measures, fields)


@torch.no_grad()
def _measured(measures: Mapping[str, Measure], fields: torch.Tensor) -> dict[str, torch.Tensor]:
    batches = torch.split(fields, BATCH)
    columns = {name: torch.cat([measure(x.double()).double() for x in batches]) for name, measure in measures.items()}
    return {name: torch.where(column.isnan(), math.inf, column) for name, column in columns.items()}


@torch.no_grad()
def noise_sensitivity(pde: PDE, fields: torch.Tensor, operator: str, *, seed: int = 0) -> float:
    """s of (mean residual of exact fields with white noise) = floor + s sigma^2, sigma relative to each channel's std.

    Measured in float64 at sigma = PROBE_NOISE and its negative: what is linear in the noise cancels.
    """
    fields = fields.double()
    scale = fidelity.amplitude(fields)[:, None, None]
    noise = seeding.normal(seed, "noise sensitivity", range(len(fields)), pde.shape).to(fields)
    rises = []
    for x, e in zip(fields.split(BATCH), (PROBE_NOISE * scale * noise).split(BATCH), strict=True):
        rises.append((pde.residual(x + e, operator) + pde.residual(x - e, operator)) / 2 - pde.residual(x, operator))
    return torch.cat(rises).mean().item() / PROBE_NOISE**2


def noise_equivalent(residual: float, floor: float, slope: float) -> float:
    """sigma of the white noise (of each channel's std) that gives exact fields this residual; 0 at and below the floor.

    Says what ``over_floor`` cannot where an operator is exact and its floor is rounding. nan where noise does not raise the
    operator's residual.
    """
    return math.sqrt(max(residual - floor, 0.0) / slope) if slope > 0 else math.nan


def _physics_figures(
    values: dict[str, torch.Tensor], floors: dict[str, float], lows: dict[str, float], *, is_data: bool, seed: int, block: int
) -> Figures:
    """Below the floor is a set whose mean's whole interval lies below that of real data (``lows``: its lower end).

    ``block``: so many consecutive samples depend on each other.
    """
    figures: Figures = {}
    for name, column in values.items():
        if name == "resolve/trivial":
            figures["resolve/trivial_median"] = column.median().item()
            continue
        figures[f"{name}/mean"] = column.mean().item()
        figures[f"{name}/median"] = column.median().item()
        figures[f"{name}/mean_interval"] = list(fidelity.bootstrap_interval(column, "mean", seed=seed, block=block))
        figures[f"{name}/median_interval"] = list(fidelity.bootstrap_interval(column, "median", seed=seed, block=block))
    for name, floor in floors.items():
        mean = figures[f"residual/{name}/mean"]
        figures[f"residual/{name}/over_floor"] = mean / max(floor, 1e-300)
        high = figures[f"residual/{name}/mean_interval"][1]
        figures[f"residual/{name}/below_floor"] = not is_data and high < lows[name]
    return figures


def fidelity_figures(pde: PDE, fields: torch.Tensor, real: torch.Tensor) -> Figures:
    """Every fidelity measure of fields against real ones. Ratios of several channels: the one farthest from 1, and each."""
    fields = fields.to(real.device)
    distances = fidelity.compare(fields, real)
    periodic = pde.grid.periodic
    figures: Figures = {
        "fidelity/energy_distance": distances.energy,
        "fidelity/energy_distance_unbiased": distances.energy_squared_unbiased,
        "fidelity/energy_distance_same_law": distances.energy_same_law,
        "fidelity/marginal_energy_distance": fidelity.marginal_energy_distance(pde, fields, real),
        "fidelity/log_spectrum_error": fidelity.log_spectrum_error(fields, real, periodic),
        "fidelity/mean_field_error": fidelity.mean_field_error(fields, real),
        "fidelity/std_field_error": fidelity.std_field_error(fields, real),
        "fidelity/diversity_ratio": distances.diversity_ratio,
        "fidelity/nearest_distance": distances.nearest,
    }
    ratios = {
        "fidelity/amplitude_ratio": fidelity.amplitude_ratio(fields, real),
        "fidelity/high_wavenumber_ratio": fidelity.high_wavenumber_ratio(fields, real, periodic),
    }
    for name, ratio in ratios.items():
        figures[name] = ratio[ratio.log().abs().argmax()].item()
        figures |= {f"{name}/{channel}": value for channel, value in zip(pde.channels, ratio.tolist(), strict=True)}
    return figures


TABLE_WIDTH = 132
FIRST = ("base", "base corrected", "tuned")
TITLES = {"base corrected": "base, corrected", DATA: "real data"}


def result_table(result: Result) -> Table:
    """The figures as a table: base | tuned | other sets | real data; 95% intervals under the values, faults named in red.

    It wants TABLE_WIDTH columns with four sets.
    """
    table = Table(
        title=f"{result['env_id']} at {result['resolution']}²: {result['num_samples']} samples of each, "
        f"against {result['num_real']} held-out solutions",
        caption="second line: 95% bootstrap interval; over floor: mean / mean of real data; "
        "as noise: the white noise (of each channel's std) that gives real data this residual; real data: a second held-out set",
    )
    first = [name for name in FIRST if name in result["sets"]]
    columns: list[str] = first + [name for name in result["sets"] if name not in (*first, DATA)] + [DATA]
    corrected = {"tuned": "tuned, corrected"} if result.get("sampler", {}).get("corrections") else {}
    table.add_column("figure", no_wrap=True)
    for name in columns:
        table.add_column((TITLES | corrected).get(name, name), justify="right", no_wrap=True)
    for section in _sections(result):
        for label, key in section:
            table.add_row(label, *(_cell(result[name], key) for name in columns))
        table.add_section()
    return table


def _sections(result: Result) -> list[list[tuple[str, str]]]:
    """Rows (label, figure name), in groups."""
    residuals = []
    for name in result["operators"]:
        label = f"{name}{_role(result, name)}"
        residuals += [(f"residual {label}", f"residual/{name}/mean")]
        if name == result["rewarded_operator"]:
            residuals += [("  median", f"residual/{name}/median")]
        residuals += [("  over floor", f"residual/{name}/over_floor"), ("  as noise", f"residual/{name}/noise_equivalent")]
    physics = [(name.replace("_", " "), f"condition/{name}/mean") for name in result["conditions"]]
    physics += [("re-solve error, median", "resolve/median"), ("  trivial competitor", "resolve/trivial_median")]
    likeness = [
        ("amplitude ratio", "fidelity/amplitude_ratio"),
        ("energy distance", "fidelity/energy_distance"),
        ("  over real data's", "fidelity/energy_distance_ratio_to_data"),
        ("  squared, unbiased", "fidelity/energy_distance_unbiased"),
        ("  of the known marginal", "fidelity/marginal_energy_distance"),
        ("log spectrum error (decades)", "fidelity/log_spectrum_error"),
        ("high-wavenumber energy ratio", "fidelity/high_wavenumber_ratio"),
        ("diversity ratio", "fidelity/diversity_ratio"),
    ]
    return [residuals, physics, likeness]


def _role(result: Result, operator: str) -> str:
    if operator == result["rewarded_operator"]:
        return " (rewarded)"
    return " (not rewarded)" if operator == result["unrewarded_operator"] else ""


def _cell(figures: Figures, key: str) -> Text:
    value = figures[key]
    cell = Text(f"{value:.4g}")
    if not math.isfinite(value):
        cell.append(f" {figures['num_nonfinite']} not finite" if figures["num_nonfinite"] else " not finite")
        cell.stylize("red")
    elif key.startswith("residual/") and figures[f"{key.rpartition('/')[0]}/below_floor"]:
        cell.append("" if key.endswith("/median") else " below floor")
        cell.stylize("bold red")
    if f"{key}_interval" in figures:
        low, high = figures[f"{key}_interval"]
        cell.append(f"\n{low:.3g} to {high:.3g}", style="dim")
    return cell
