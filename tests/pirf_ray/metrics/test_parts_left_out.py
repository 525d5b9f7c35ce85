"""Metrics of PDEs that leave parts out: absent, never nan."""

import json
from pathlib import Path

import pytest
import torch

from bare_pdes import Heat, clouds
from envs.pdes import PDE
from envs.pdes.base import NotProvided
from pirf_ray.metrics import distances, physics
from pirf_ray.metrics.evaluation import evaluate_sets
from pirf_ray.metrics.results import EvaluationResult

COUNT = 6


def evaluated(pde: PDE) -> EvaluationResult:
    """Return the metrics of made-up fields around 3 with the standard deviation 2, as ``clouds`` has them."""
    fields = 3 + 2 * torch.randn((4 * COUNT, *pde.shape), generator=torch.Generator().manual_seed(0))
    sets = {"base": fields[:COUNT] + 1, "tuned": fields[COUNT : 2 * COUNT]}
    return evaluate_sets(pde, sets, real=fields[2 * COUNT : 3 * COUNT], real_other=fields[3 * COUNT :])


def check_json(result: EvaluationResult) -> None:
    """JSON without nan and null, read back as it was."""
    text = json.dumps(result.to_json(), allow_nan=False)
    assert "null" not in text
    assert EvaluationResult.from_json(json.loads(text)) == result


def test_a_pde_without_a_solver_has_residuals_and_conditions_only() -> None:
    result = evaluated(Heat())
    assert (result.operators, result.default_operator, result.unrewarded_operator) == (["laplace"], "laplace", "")
    assert result.conditions == ["cold"]
    for metrics in result.sets.values():
        assert metrics.residuals.keys() == {"laplace"} and metrics.conditions.keys() == {"cold"}
        assert metrics.resolve is metrics.resolve_trivial is metrics.fidelity.marginal_energy_distance is None
    base, data = result["base"].residuals["laplace"], result.data.residuals["laplace"]
    assert data.mean > 0 and base.over_floor == pytest.approx(base.mean / data.mean)
    check_json(result)


def test_a_law_known_by_samples_has_fidelity_only(tmp_path: Path) -> None:
    result = evaluated(clouds(tmp_path)())
    assert (result.operators, result.default_operator, result.rewarded_operator, result.conditions) == ([], "", "", [])
    for metrics in result.sets.values():
        assert metrics.residuals == metrics.conditions == {}
        assert {name.split("/")[0] for name in metrics.to_json()} == {"num_samples", "num_nonfinite", "fidelity"}
    assert result["base"].fidelity.mean_field_error > result["tuned"].fidelity.mean_field_error
    check_json(result)


def test_each_part_is_measured_if_the_class_has_it(tmp_path: Path) -> None:
    """A re-solve error without a trivial competitor, and a marginal."""

    class Resolved(clouds(tmp_path)):  # type: ignore[misc]
        env_id = "Resolved-v0"

        def resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
            return fields.square().flatten(1).mean(1)

        def marginal(self, fields: torch.Tensor) -> torch.Tensor:
            return fields[:, 0]

    result = evaluated(Resolved())
    assert result.data.resolve.mean > 0 and result.data.resolve_trivial is None
    assert result.data.fidelity.marginal_energy_distance > 0
    check_json(result)


def test_measures_of_parts_that_are_left_out(tmp_path: Path) -> None:
    pde = clouds(tmp_path)()
    fields = pde.solve(0, "test", range(4))
    assert physics.residuals(pde, fields) == physics.conditions(pde, fields) == {}
    assert physics.resolve_errors(pde, fields) == (None, None)
    with pytest.raises(NotProvided, match=r"Clouds-v0 has no part of known law \(marginal\)"):
        distances.marginal_energy_distance(pde, fields, fields)
