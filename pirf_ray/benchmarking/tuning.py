"""Settings of a method by trials: Optuna's TPE, the first trial with the authors' settings, judged on validation seeds.

The study is made anew for each trial from the finished ones, with a seed of its own, so that a benchmark that was stopped
goes on as if it had not been.
"""

import math
from typing import Any

import optuna

from pirf_ray.methods import Method, Problem, Settings

STARTUP_TRIALS = 2
"""Trials before TPE models what it has seen: the authors' settings and one at random."""
ENERGY_LIMIT = 1.05
"""Largest energy distance over the base's that costs nothing: inside the benchmark's own limit of 1.1, as trials are noisy."""
ENERGY_PENALTY = 20.0
"""Decades of residual for each unit of energy ratio beyond: 5 % more cost a factor of ten."""
REFUSED = 1e3
"""Score of a residual below the data floor, of a training that failed, of samples that are not finite."""


def score(figures: dict[str, float]) -> float:
    """log10 of the mean residual, penalized outside the fidelity limit: lower is better."""
    residual, energy = figures["residual"], figures["energy_ratio"]
    if figures["below_floor"] or not (math.isfinite(residual) and math.isfinite(energy) and residual > 0):
        return REFUSED
    return math.log10(residual) + ENERGY_PENALTY * max(0.0, energy - ENERGY_LIMIT)


def next_settings(method: Method, problem: Problem, trials: list[dict[str, Any]]) -> Settings:
    """Settings of the trial after the finished ones (cells with ``settings`` and ``score``)."""
    if not trials:
        return method.defaults(problem)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=len(trials), n_startup_trials=STARTUP_TRIALS)
    study = optuna.create_study(sampler=sampler)
    for cell in trials:
        study.enqueue_trial(cell["settings"])
        trial = study.ask()
        method.suggest(trial, problem)
        study.tell(trial, cell["score"])
    return method.suggest(study.ask(), problem)


def best_settings(trials: list[dict[str, Any]]) -> Settings:
    """Settings of the trial with the lowest score; {} if the method has none to search."""
    return min(trials, key=lambda cell: cell["score"])["settings"] if trials else {}
