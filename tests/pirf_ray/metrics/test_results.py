"""Typed results and their JSON: the same numbers back, under documented names, whole or refused."""

import json
import math
from dataclasses import replace

import pytest

from pirf_ray.metrics.results import EvaluationResult, SamplerRecord, SetMetrics

STATISTICS = ("mean", "median", "mean_interval", "median_interval")
RESIDUAL = (*STATISTICS, "over_floor", "below_floor", "noise_equivalent")
FIDELITY = (
    "energy_distance",
    "energy_distance_unbiased",
    "energy_distance_same_law",
    "energy_distance_ratio_to_data",
    "marginal_energy_distance",
    "log_spectrum_error",
    "mean_field_error",
    "std_field_error",
    "diversity_ratio",
    "nearest_distance",
    "amplitude_ratio",
    "amplitude_ratio/u",
    "high_wavenumber_ratio",
    "high_wavenumber_ratio/u",
)
NAMES = {
    "num_samples",
    "num_nonfinite",
    *(f"residual/{operator}/{name}" for operator in ("consistent", "simpson", "paper") for name in RESIDUAL),
    *(f"condition/{condition}/{name}" for condition in ("initial_condition", "mean") for name in STATISTICS),
    *(f"resolve/{name}" for name in (*STATISTICS, "trivial_median")),
    *(f"fidelity/{name}" for name in FIDELITY),
}
"""Names of a set's numbers in JSON, for Burgers."""


def through_json(data: dict) -> dict:
    """Return what a file that holds the data gives back."""
    return json.loads(json.dumps(data, sort_keys=True))


def test_a_set_comes_back_from_json(result: EvaluationResult) -> None:
    for metrics in result.sets.values():
        assert SetMetrics.from_json(through_json(metrics.to_json())) == metrics


def test_names_are_stable(result: EvaluationResult) -> None:
    assert result["base"].to_json().keys() == NAMES


def test_every_number_stands_under_its_own_name(result: EvaluationResult) -> None:
    metrics = result["base"]
    flat = metrics.to_json()
    assert flat["residual/simpson/mean"] == metrics.residuals["simpson"].mean
    assert flat["residual/paper/median_interval"] == list(metrics.residuals["paper"].median_interval)
    assert flat["condition/mean/median"] == metrics.conditions["mean"].median
    assert flat["resolve/median"] == metrics.resolve.median
    assert flat["resolve/trivial_median"] == metrics.resolve_trivial
    assert flat["fidelity/amplitude_ratio/u"] == metrics.fidelity.amplitude_ratios["u"]
    assert len(set(map(str, flat.values()))) > 30


def test_the_training_distance_is_named_only_if_it_is_known(result: EvaluationResult) -> None:
    metrics = result["base"]
    known = replace(metrics, fidelity=replace(metrics.fidelity, nearest_training_distance=0.25))
    assert "fidelity/nearest_training_distance" not in metrics.to_json()
    assert known.to_json()["fidelity/nearest_training_distance"] == 0.25
    assert SetMetrics.from_json(through_json(known.to_json())) == known


def test_ratios_of_several_channels_come_back(result: EvaluationResult) -> None:
    metrics = result["base"]
    ratios = {"a": 0.5, "u": 1.25}
    two = replace(metrics, fidelity=replace(metrics.fidelity, amplitude_ratios=ratios, amplitude_ratio=0.5))
    assert SetMetrics.from_json(through_json(two.to_json())).fidelity.amplitude_ratios == ratios


def test_numbers_that_are_not_finite_come_back(result: EvaluationResult) -> None:
    metrics = result["base"]
    broken = replace(metrics, resolve_trivial=math.inf, fidelity=replace(metrics.fidelity, energy_distance=math.nan))
    back = SetMetrics.from_json(through_json(broken.to_json()))
    assert back.resolve_trivial == math.inf and math.isnan(back.fidelity.energy_distance)


@pytest.mark.parametrize(
    "name",
    [
        "num_nonfinite",
        "residual/simpson/below_floor",
        "condition/mean/mean_interval",
        "resolve/median",
        "fidelity/diversity_ratio",
    ],
)
def test_a_missing_number_is_named(result: EvaluationResult, name: str) -> None:
    flat = {key: value for key, value in result["base"].to_json().items() if key != name}
    with pytest.raises(KeyError, match=name):
        SetMetrics.from_json(flat)


def test_a_result_comes_back_from_json(result: EvaluationResult) -> None:
    whole = replace(
        result,
        sampler=SamplerRecord(num_steps=20, solver="heun", nfe=39, corrections=20),
        seed=3,
        kept_update=0,
        ending="4 of 4 updates",
    )
    for written in (result, whole):
        assert EvaluationResult.from_json(through_json(written.to_json())) == written


def test_a_result_holds_its_sets_by_name(result: EvaluationResult) -> None:
    made = result.to_json()
    assert made["sets"] == ["base", "tuned", "data"]
    assert made["tuned"] == result["tuned"].to_json() and result.data == result["data"]
    assert not {"sampler", "seed", "kept_update", "ending"} & made.keys()
    assert replace(result, kept_update=0).to_json()["kept_update"] == 0


@pytest.mark.parametrize("missing", ["sets", "data", "operators", "rewarded_operator"])
def test_a_result_without_a_part_is_none(result: EvaluationResult, missing: str) -> None:
    with pytest.raises((KeyError, TypeError), match=missing):
        EvaluationResult.from_json({name: value for name, value in result.to_json().items() if name != missing})


def test_named_metrics_come_back_under_their_own_group(result: EvaluationResult) -> None:
    named = replace(result["base"], named={"reward": -1.5, "energy-distance": 0.25})
    flat = named.to_json()
    assert (flat["metric/reward"], flat["metric/energy-distance"]) == (-1.5, 0.25)
    assert flat.keys() == NAMES | {"metric/reward", "metric/energy-distance"}
    assert SetMetrics.from_json(through_json(flat)) == named


def test_what_a_pde_leaves_out_is_absent_and_comes_back(result: EvaluationResult) -> None:
    metrics = result["base"]
    fidelity = replace(metrics.fidelity, marginal_energy_distance=None)
    bare = replace(metrics, residuals={}, conditions={}, resolve=None, resolve_trivial=None, fidelity=fidelity)
    flat = bare.to_json()
    assert flat.keys() == {n for n in NAMES if n.split("/")[0] in ("num_samples", "num_nonfinite", "fidelity")} - {
        "fidelity/marginal_energy_distance"
    }
    assert None not in flat.values()
    assert SetMetrics.from_json(through_json(flat)) == bare
    assert bare.resolve_median is None and metrics.resolve_median == metrics.resolve.median


def test_a_re_solve_error_without_a_trivial_competitor_comes_back(result: EvaluationResult) -> None:
    alone = replace(result["base"], resolve_trivial=None)
    assert "resolve/trivial_median" not in alone.to_json()
    assert SetMetrics.from_json(through_json(alone.to_json())) == alone
