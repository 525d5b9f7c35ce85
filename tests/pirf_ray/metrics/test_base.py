"""The registry of metrics: users' own by decorator and module, names, what is no number."""

import doctest
import sys
from pathlib import Path

import pytest
import torch

from envs.common.registry import VARIABLE
from envs.pdes import PDE
from pirf_ray.metrics import METRICS, base, find_metrics, metric
from pirf_ray.metrics.evaluation import evaluate_sets
from registries import restored

FIELDS = torch.ones(3, 1, 8, 8)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget what a test registers."""
    restored(METRICS, monkeypatch)


def test_a_function_becomes_a_metric_and_stays_a_function(pde: PDE) -> None:
    @metric("count", best=1.0)
    def count(fields, real, pde):
        """Number of samples.

        More about it.
        """
        return len(fields)

    assert count(FIELDS, None, None) == 3
    found = METRICS["count"]
    assert (found(FIELDS, FIELDS, pde), found.best, type(found(FIELDS, FIELDS, pde))) == (3.0, 1.0, float)
    assert METRICS.describe()[-1].split(maxsplit=1) == ["count", "Number of samples."]


def test_a_tensor_with_one_element_is_a_number_and_no_graph_is_built(pde: PDE) -> None:
    recorded = []

    @metric("largest")
    def largest(fields, real, pde):
        recorded.append((fields * 2).requires_grad)
        return fields.max()

    assert METRICS["largest"](FIELDS.clone().requires_grad_(), FIELDS, pde) == 1.0
    assert recorded == [False]


@pytest.mark.parametrize("value", [None, "much", torch.ones(2), [1.0]], ids=["None", "text", "two numbers", "list"])
def test_what_is_no_number_is_a_type_error_that_names_the_metric(value: object, pde: PDE) -> None:
    metric("strange")(lambda fields, real, pde: value)
    with pytest.raises(TypeError, match=f"metric 'strange' must return a number, got {type(value).__name__}"):
        METRICS["strange"](FIELDS, FIELDS, pde)


@pytest.mark.parametrize("name", ["reward", "a/b", "a:b", "", "a b"])
def test_a_name_that_cannot_stand_in_json_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="the name of a metric has letters"):
        metric(name)


def test_the_name_of_another_modules_metric_is_taken() -> None:
    with pytest.raises(ValueError, match=r"metric 'energy-distance' of .*test_base.* is taken by pirf_ray.metrics.scalars"):
        metric("energy-distance")(lambda fields, real, pde: 0.0)


OWN = """
from pirf_ray.metrics import metric

@metric("mean-level")
def mean_level(fields, real, pde):
    "Mean of all values."
    return fields.mean()
"""


def test_a_users_metric_is_found_by_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pde: PDE) -> None:
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "own_metric", raising=False)
    (tmp_path / "own_metric.py").write_text(OWN)
    found = find_metrics(["own_metric:mean-level", "energy-distance"])
    assert list(found) == ["mean-level", "energy-distance"]
    assert found["mean-level"](FIELDS, FIELDS, pde) == 1.0


def test_an_unknown_metric_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="--metrics: unknown metric 'beauty'; known: amplitude-ratio, diversity-ratio") as told:
        find_metrics(["energy-distance", "beauty"])
    assert all(name in str(told.value) for name in METRICS)


def test_named_metrics_are_measured_on_every_set_and_on_real_data(
    pde: PDE, sets: dict[str, torch.Tensor], real: torch.Tensor, real_other: torch.Tensor
) -> None:
    chosen = find_metrics(["energy-distance", "amplitude-ratio", "nearest-distance"])
    result = evaluate_sets(pde, sets, real=real, real_other=real_other, metrics=chosen)
    for measured in result.sets.values():
        fidelity = measured.fidelity
        assert measured.named == {
            "energy-distance": fidelity.energy_distance,
            "amplitude-ratio": fidelity.amplitude_ratio,
            "nearest-distance": fidelity.nearest_distance,
        }


def test_every_registered_scalar_equals_the_number_of_the_evaluation(
    pde: PDE, sets: dict[str, torch.Tensor], real: torch.Tensor, real_other: torch.Tensor
) -> None:
    """One formula each: the registered metrics and FidelityMetrics agree to rounding of sums in another order."""
    measured = evaluate_sets(pde, sets, real=real, real_other=real_other, metrics=METRICS)["base"]
    for name, value in measured.named.items():
        assert value == pytest.approx(getattr(measured.fidelity, name.replace("-", "_")), rel=1e-9), name


def test_the_example_of_the_protocol_runs() -> None:
    assert doctest.testmod(base).failed == 0
