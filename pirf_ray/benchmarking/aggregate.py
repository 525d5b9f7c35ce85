"""Finished cells to one benchmark: means over seeds with intervals, ratios to the base model, who is first.

benchmark["envs"][env]["steps"]["20"]["methods"][method]["figures"]["residual/consistent/mean"] = {mean, values, interval}
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from pirf_ray.benchmarking.cells import Cell
from pirf_ray.methods import METHODS

GUARD = 1.1
"""Largest energy distance over the base's on the same noise, inside of which methods are ranked."""
AT_FLOOR = 1.05
"""A residual up to so many times real data's has nothing left to gain: such methods are equal."""
EQUAL = 1.01
"""Ratio of residuals under which two methods are equal too: over three seeds their means are known to a tenth at best."""
COSTS = ("network_forwards", "network_gradients", "residual_gradients", "seconds")
Figure = dict[str, Any]


def title_of(method: str) -> str:
    known = METHODS.get(method.rpartition(":")[2])
    return known.title if known else method


def source_of(method: str) -> str:
    known = METHODS.get(method.rpartition(":")[2])
    return known.source if known else ""


def aggregate(cells: Sequence[Cell], header: dict[str, Any]) -> dict[str, Any]:
    """Everything that the report shows, JSON-able. What the header announces and no cell holds is listed as missing."""
    envs = {env: _env(env, [c for c in cells if c["env"] == env], header["methods"]) for env in header["envs"]}
    return {
        "header": header,
        "guard": GUARD,
        "titles": {method: title_of(method) for method in header["methods"]},
        "sources": {method: source_of(method) for method in header["methods"]},
        "envs": {env: part for env, part in envs.items() if part["steps"]},
        "missing": _missing(cells, header),
    }


def _missing(cells: Sequence[Cell], header: dict[str, Any]) -> list[str]:
    """PDE, method and N of seed 0 that are announced and not there; with the reason where it is a failed training."""
    there = {(c["env"], c["method"], c["num_steps"]) for c in cells if c["kind"] == "evaluate" and c["seed"] == 0}
    failed = {(c["env"], c["method"]): c["failed"] for c in cells if c["kind"] == "train" and "failed" in c}
    missing = []
    for env in header["envs"]:
        for method in header["methods"]:
            steps = [n for n in header["num_steps"] if (env, method, n) not in there]
            if steps:
                why = f" ({failed[env, method]})" if (env, method) in failed else ""
                missing.append(f"{env} {method} at N = {', '.join(map(str, steps))}{why}")
    return missing


def _env(env: str, cells: list[Cell], methods: Sequence[str]) -> dict[str, Any]:
    evaluated = [c for c in cells if c["kind"] == "evaluate" and c["method"] in methods]
    if not evaluated:
        return {"steps": {}}
    shared = {
        name: evaluated[0][name] for name in ("operators", "default_operator", "unrewarded_operator", "conditions", "channels")
    }
    steps = sorted({c["num_steps"] for c in evaluated})
    return {
        **shared,
        "steps": {
            str(n): _steps([c for c in evaluated if c["num_steps"] == n], methods, shared["default_operator"]) for n in steps
        },
        "training": _training([c for c in cells if c["kind"] == "train" and "failed" not in c], methods),
        "trials": _trials([c for c in cells if c["kind"] == "tune"], methods),
    }


def _training(cells: list[Cell], methods: Sequence[str]) -> dict[str, Any]:
    """Settings, budget and mean cost of the trainings of each method."""
    found = {}
    for method in methods:
        own = [c for c in cells if c["method"] == method]
        if own:
            cost = {name: float(np.mean([c["cost"][name] for c in own])) for name in COSTS}
            found[method] = {"settings": own[0]["settings"], "budget": own[0]["budget"], "cost": cost}
    return found


def _trials(cells: list[Cell], methods: Sequence[str]) -> dict[str, Any]:
    return {
        method: [{"settings": c["settings"], "score": c["score"], **c.get("figures", {})} for c in cells if c["method"] == method]
        for method in methods
    }


def _steps(cells: list[Cell], methods: Sequence[str], operator: str) -> dict[str, Any]:
    """One N: each method's entry, real data, and the ranking."""
    by_seed = {(c["method"], c["seed"]): c for c in cells}
    entries = {}
    for method in methods:
        own = [c for c in cells if c["method"] == method]
        if own:
            entries[method] = _entry(own, by_seed, operator)
    data = {name: float(np.mean([c["data"][name] for c in cells])) for name in _numbers(cells[0]["data"])}
    floor = data[f"residual/{operator}/mean"]
    ranks = _ranks(entries, operator, floor)
    return {
        "methods": entries,
        "data": data,
        "data_spectra": cells[0]["data_spectra"],
        "nfe": cells[0]["nfe"],
        "samples": cells[0]["samples"],
        "real": cells[0]["real"],
        "ranks": ranks,
        "first": [method for method, rank in ranks.items() if rank == 1],
    }


def _entry(own: list[Cell], by_seed: dict[tuple[str, int], Cell], operator: str) -> dict[str, Any]:
    residual, energy = f"residual/{operator}/mean", "fidelity/energy_distance"
    figures = {name: _figure(own, name) for name in _numbers(own[0]["figures"])}
    pairs = [(c["figures"], by_seed["base", c["seed"]]["figures"]) for c in own if ("base", c["seed"]) in by_seed]
    for name, key in (("residual_ratio", residual), ("energy_ratio", energy)):
        figures[name] = over_seeds([mine[key] / base[key] for mine, base in pairs])
    ratio = figures["energy_ratio"]["mean"]
    return {
        "figures": figures,
        "cost": {name: float(np.mean([c["cost"][name] for c in own])) for name in COSTS},
        "seeds": len(own),
        "below_floor": any(c["figures"][f"residual/{operator}/below_floor"] for c in own),
        "within_guard": bool(ratio <= GUARD),
        "spectra": own[0]["spectra"],
    }


def _numbers(figures: dict[str, Any]) -> list[str]:
    return [name for name, value in figures.items() if isinstance(value, int | float) and not isinstance(value, bool)]


def _figure(own: list[Cell], name: str) -> Figure:
    """Over seeds; of a single one the interval over samples, where there is one."""
    figure = over_seeds([c["figures"][name] for c in own])
    if len(own) == 1 and f"{name}_interval" in own[0]["figures"]:
        figure["interval"] = own[0]["figures"][f"{name}_interval"]
    return figure


def over_seeds(values: Sequence[float]) -> Figure:
    """Mean, values, and from two finite ones on Student's 95% interval of the mean."""
    mean = float(np.mean(values)) if values else math.nan
    figure: Figure = {"mean": mean, "values": [float(v) for v in values], "interval": None}
    if len(values) > 1 and all(map(math.isfinite, values)):
        half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
        figure["interval"] = [mean - half, mean + half]
    return figure


def _ranks(entries: dict[str, Any], operator: str, floor: float) -> dict[str, int]:
    """Rank by mean residual of the methods inside the guard and not under the floor; equal from AT_FLOOR times the floor down,
    and within EQUAL of each other: seeds differ by more."""
    residuals = {
        method: max(entry["figures"][f"residual/{operator}/mean"]["mean"], AT_FLOOR * floor)
        for method, entry in entries.items()
        if entry["within_guard"] and not entry["below_floor"]
    }
    finite = {method: value for method, value in residuals.items() if math.isfinite(value)}
    return {method: 1 + sum(other < value / EQUAL for other in finite.values()) for method, value in finite.items()}
