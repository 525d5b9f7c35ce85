"""Trials: the score, the order of settings, and what is suggested after a stop."""

import json
import math
from dataclasses import replace

import pytest

from comparison_cells import TILT, tried
from pirf_ray.comparison.cells import TrialCell, TrialMetrics
from pirf_ray.comparison.tuning import REFUSED, best_settings, next_settings, score


def test_score_prefers_low_residuals_inside_the_fidelity_limit() -> None:
    metrics = TrialMetrics(residual=0.01, energy_ratio=1.0, amplitude_ratio=1.0, below_floor=False)
    assert score(metrics) == pytest.approx(-2)  # log10(.01)
    assert score(replace(metrics, energy_ratio=1.04)) == pytest.approx(-2)
    assert score(replace(metrics, energy_ratio=1.15, residual=1e-4)) == pytest.approx(-4 + 20 * 0.10)
    for broken in ({"below_floor": True}, {"residual": math.nan}, {"energy_ratio": math.inf}, {"residual": 0.0}):
        assert score(replace(metrics, **broken)) == REFUSED


def test_trials_begin_with_the_defaults_and_are_the_same_after_a_stop() -> None:
    trials: list[TrialCell] = []
    for number in range(4):
        settings = next_settings(TILT, trials)
        stored = [TrialCell.from_json(json.loads(json.dumps(cell.to_json()))) for cell in trials]
        assert settings == next_settings(TILT, stored)
        cell = replace(
            tried("Burgers-v0", "tilt", number, 0.01, 1.0), settings=settings, score=abs(settings["learning_rate"] - 0.3)
        )
        trials.append(cell)
    assert trials[0].settings == {"learning_rate": 0.5}
    assert len({cell.settings["learning_rate"] for cell in trials}) == 4
    assert best_settings(trials) == min(trials, key=lambda cell: cell.score).settings
    assert best_settings([]) == {}
