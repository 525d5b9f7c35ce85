"""Settings of a method by trials: Optuna's TPE, the first trial with the authors' settings, judged on validation seeds.

The study is made anew for each trial from the finished ones, with a seed of its own. So a benchmark that was stopped
continues as if it had not been.
"""

import math
from collections.abc import Sequence

import optuna

from envs.common.search import Choice, Range, Spec, Value
from pirf_ray.comparison.cells import TrialCell, TrialMetrics
from pirf_ray.methods import Recipe, Settings

STARTUP_TRIALS = 2
"""Trials before TPE models what it has seen: the authors' settings and one at random."""
ENERGY_LIMIT = 1.05
"""Largest energy distance over the base's that costs nothing: inside the benchmark's own limit of 1.1, as trials are noisy."""
ENERGY_PENALTY = 20.0
"""Decades of residual for each unit of energy ratio beyond: 5 % more cost a factor of ten."""
REFUSED = 1e3
"""Score of a residual below the data floor, of a training that failed, of samples that are not finite."""


def score(metrics: TrialMetrics) -> float:
    """Return log10 of the mean residual, penalized outside the fidelity limit: lower is better."""
    residual, energy = metrics.residual, metrics.energy_ratio
    if metrics.below_floor or not (math.isfinite(residual) and math.isfinite(energy) and residual > 0):
        return REFUSED
    return math.log10(residual) + ENERGY_PENALTY * max(0.0, energy - ENERGY_LIMIT)


def next_settings(recipe: Recipe, trials: Sequence[TrialCell]) -> Settings:
    """Return the settings of the trial after the finished ones. The first trial has the recipe's own."""
    if not trials:
        return recipe.defaults
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=len(trials), n_startup_trials=STARTUP_TRIALS))
    for cell in trials:
        study.enqueue_trial(cell.settings)
        trial = study.ask()
        for name, spec in recipe.search.items():
            suggest(trial, name, spec)
        study.tell(trial, cell.score)
    following = study.ask()
    return {name: suggest(following, name, spec) for name, spec in recipe.search.items()}


def best_settings(trials: Sequence[TrialCell]) -> Settings:
    """Return the settings of the trial with the lowest score; {} if the method has none to search."""
    return min(trials, key=lambda cell: cell.score).settings if trials else {}


def suggest(trial: optuna.Trial, name: str, spec: Spec) -> Value:
    """Ask the trial for a value of one parameter; a fixed one is not asked for."""
    if isinstance(spec, Choice):
        if spec.fixed:
            return spec.values[0]
        chosen = trial.suggest_categorical(name, list(spec.values))
        return spec.values[spec.values.index(chosen)]
    if isinstance(spec, Range):
        if spec.whole:
            return trial.suggest_int(name, int(spec.low), int(spec.high), log=spec.log)
        return trial.suggest_float(name, spec.low, spec.high, log=spec.log)
    raise TypeError(f"{name} has a search range of type {type(spec).__name__}; known: Choice, Range")
