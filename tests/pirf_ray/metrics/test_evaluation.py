"""Metrics of sets whose noise is known: order, floors, intervals, hacked and broken sets, bad input."""

import math
from dataclasses import fields as fields_of

import numpy as np
import pytest
import torch

from envs.pdes import PDE
from pirf_ray.metrics.evaluation import evaluate_sets
from pirf_ray.metrics.results import Estimate, EvaluationResult, SetMetrics


def estimates(metrics: SetMetrics) -> dict[str, Estimate]:
    """Return every estimate of a set, by a name for messages."""
    return {**metrics.residuals, **metrics.conditions, "resolve": metrics.resolve}


def test_the_floor_is_of_all_held_out_fields(
    result: EvaluationResult, pde: PDE, real: torch.Tensor, real_other: torch.Tensor
) -> None:
    for name in pde.operators:
        floor = pde.residual(torch.cat([real, real_other]).double(), name).mean().item()
        base = result["base"].residuals[name]
        assert result.data.residuals[name].mean == pytest.approx(floor, rel=1e-9)
        assert base.over_floor == pytest.approx(base.mean / floor)


def test_metrics_order_sets_by_their_noise(result: EvaluationResult, pde: PDE) -> None:
    assert list(result.sets) == ["base", "tuned", "data"]
    base, tuned, data = result.sets.values()
    for value in (lambda m: m.residuals[pde.default_operator].mean, lambda m: m.resolve.median):
        assert value(base) > value(tuned) > value(data)
    base_error, tuned_error, data_error = (m.fidelity.log_spectrum_error for m in result.sets.values())
    assert base_error > 2 * tuned_error and base_error > 2 * data_error
    assert base.fidelity.high_wavenumber_ratio > 2
    assert base.resolve.median < base.resolve_trivial


def test_real_data_row_is_its_own_floor_and_finite(result: EvaluationResult, pde: PDE) -> None:
    data = result.data
    assert data.to_json().keys() == result["base"].to_json().keys() == result["tuned"].to_json().keys()
    numbers = np.concatenate([np.ravel(value) for value in data.to_json().values()])
    assert np.isfinite(numbers).all()
    assert data.num_samples == result.num_samples == 48
    assert data.fidelity.energy_distance_ratio_to_data == 1
    assert data.fidelity.energy_distance == pytest.approx(data.fidelity.energy_distance_same_law, rel=0.5)
    for name in pde.operators:
        assert data.residuals[name].over_floor == 1
        assert not data.residuals[name].below_floor
        assert data.residuals[name].noise_equivalent == 0


def test_the_result_names_what_was_measured(result: EvaluationResult, pde: PDE) -> None:
    assert result.operators == ["consistent", "simpson", "paper"]
    assert (result.default_operator, result.rewarded_operator, result.unrewarded_operator) == (
        "consistent",
        "consistent",
        "simpson",
    )
    assert (result.env_id, result.resolution, result.num_real) == (pde.env_id, 16, 96)
    assert (result.conditions, result.channels) == (list(pde.conditions), ["u"])
    assert result["base"].residuals.keys() == set(result.operators)
    assert result["base"].fidelity.amplitude_ratios == {"u": result["base"].fidelity.amplitude_ratio}


def test_intervals_hold_their_numbers(result: EvaluationResult) -> None:
    for metrics in result.sets.values():
        for name, found in estimates(metrics).items():
            assert found.mean_interval[0] <= found.mean <= found.mean_interval[1], name
            assert found.median_interval[0] <= found.median <= found.median_interval[1], name


def test_nothing_happening_is_below_floor(pde: PDE, truth: torch.Tensor, real: torch.Tensor, real_other: torch.Tensor) -> None:
    quiet = 1e-4 * torch.ones_like(truth[:48]) + 1e-8 * truth[:48]
    tuned = evaluate_sets(pde, {"tuned": quiet}, real=real, real_other=real_other)["tuned"]
    assert tuned.residuals[pde.default_operator].below_floor
    assert tuned.fidelity.energy_distance_ratio_to_data > 2


def test_a_broken_sample_is_counted_and_infinitely_wrong(
    pde: PDE, sets: dict[str, torch.Tensor], real: torch.Tensor, real_other: torch.Tensor
) -> None:
    broken = sets["tuned"].clone()
    broken[2, 0, 3, 4] = math.nan
    tuned = evaluate_sets(pde, {"tuned": broken}, real=real, real_other=real_other)["tuned"]
    assert tuned.num_nonfinite == 1
    assert tuned.residuals[pde.default_operator].mean == math.inf
    assert math.isfinite(tuned.residuals[pde.default_operator].median)
    assert tuned.resolve.mean == math.inf
    assert math.isnan(tuned.fidelity.energy_distance)


def test_evaluate_sets_names_bad_input(pde: PDE, sets: dict[str, torch.Tensor], truth: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="same number of samples"):
        evaluate_sets(pde, {**sets, "other": sets["base"][:4]}, real=truth, real_other=truth)
    with pytest.raises(ValueError, match="at least as many samples as each set, 48, got 5"):
        evaluate_sets(pde, sets, real=truth, real_other=truth[:5])
    with pytest.raises(ValueError, match="kept for real data"):
        evaluate_sets(pde, {"data": truth}, real=truth, real_other=truth)
    with pytest.raises(ValueError, match="at least one set"):
        evaluate_sets(pde, {}, real=truth, real_other=truth)


def test_the_rewarded_operator_is_recorded(
    pde: PDE, sets: dict[str, torch.Tensor], real: torch.Tensor, real_other: torch.Tensor
) -> None:
    few = {name: fields[:4] for name, fields in sets.items()}
    result = evaluate_sets(pde, few, real=real[:8], real_other=real_other[:8], rewarded="paper")
    assert (result.rewarded_operator, result.default_operator, result.num_samples) == ("paper", "consistent", 4)
    assert {f.name for f in fields_of(EvaluationResult)} >= {"kept_update", "ending", "seed", "sampler"}
    assert result.kept_update is result.ending is result.seed is result.sampler is None
