"""Made-up cells of a finished benchmark, with figures that tests know."""

from collections.abc import Sequence

from pirf_ray.comparison.cells import Cell
from pirf_ray.comparison.plan import small

CHANNELS = {"Burgers-v0": ["u"], "Poisson-v0": ["f", "phi"]}
FLOOR = 1e-5


def figures(residual: float, energy: float, *, below_floor: bool = False) -> dict:
    """One set's figures, of the names that evaluate_sets gives."""
    made: dict = {"num_samples": 8, "num_nonfinite": 0}
    for operator in ("consistent", "simpson", "paper"):
        made |= {
            f"residual/{operator}/mean": residual,
            f"residual/{operator}/median": residual / 2,
            f"residual/{operator}/mean_interval": [residual / 2, residual * 2],
            f"residual/{operator}/over_floor": residual / FLOOR,
            f"residual/{operator}/below_floor": below_floor,
            f"residual/{operator}/noise_equivalent": 0.1,
        }
    made |= {
        "condition/wall/mean": 0.01,
        "resolve/mean": 0.2,
        "resolve/median": residual**0.5,
        "resolve/median_interval": [0.05, 0.2],
    }
    made |= {"resolve/trivial_median": 0.9, "fidelity/energy_distance": energy, "fidelity/nearest_training_distance": 0.7}
    names = (
        "energy_distance_unbiased marginal_energy_distance log_spectrum_error mean_field_error std_field_error diversity_ratio "
        "nearest_distance amplitude_ratio high_wavenumber_ratio energy_distance_ratio_to_data"
    )
    return made | {f"fidelity/{name}": 1.0 + 0.01 * i for i, name in enumerate(names.split())}


def spectra(env: str, level: float = 1.0) -> dict:
    return {axis: [[level / (1 + k) ** 3 for k in range(17)] for _ in CHANNELS[env]] for axis in ("rows", "columns")}


def evaluated(env: str, method: str, steps: int, seed: int, residual: float, energy: float, *, below_floor: bool = False) -> Cell:
    return {
        "kind": "evaluate",
        "env": env,
        "method": method,
        "settings": {},
        "num_steps": steps,
        "seed": seed,
        "nfe": 2 * steps - 1,
        "samples": 8,
        "real": 64,
        "figures": figures(residual, energy, below_floor=below_floor),
        "data": figures(FLOOR, 0.09),
        "operators": ["consistent", "simpson", "paper"],
        "default_operator": "consistent",
        "unrewarded_operator": "simpson",
        "conditions": ["wall"],
        "channels": CHANNELS[env],
        "spectra": spectra(env, 1 + residual),
        "data_spectra": spectra(env),
        "cost": {"network_forwards": 2 * steps - 1, "network_gradients": 0, "residual_gradients": 20, "seconds": 0.25},
    }


def trained(env: str, method: str, seed: int = 0) -> Cell:
    cost = {"network_forwards": 1000, "network_gradients": 500, "residual_gradients": 0, "seconds": 60.0}
    settings = {"learning_rate": 1e-4}
    return {"kind": "train", "env": env, "method": method, "settings": settings, "seed": seed, "budget": 2000, "cost": cost}


def tried(env: str, method: str, trial: int, residual: float, energy_ratio: float) -> Cell:
    found = {"residual": residual, "energy_ratio": energy_ratio, "amplitude_ratio": 1.0, "below_floor": False}
    cost = trained(env, method)["cost"]
    return {
        "kind": "tune", "env": env, "method": method, "trial": trial, "settings": {}, "figures": found, "score": 0.0, "cost": cost
    }  # fmt: skip


def header(envs: Sequence[str], methods: Sequence[str], steps: Sequence[int] = (10, 20)) -> dict:
    return {
        "command": "python -m pirf_ray.benchmark",
        "date": "2026-11-25",
        "machine": "2 CPU cores",
        "versions": {"pirf_ray": "0.1.0"},
        "plan": small().to_json(),
        "envs": list(envs),
        "methods": list(methods),
        "num_steps": list(steps),
        "parameters": {},
        "seeds": dict.fromkeys(methods, 1),
    }
