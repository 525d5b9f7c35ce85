"""Residuals, conditions and re-solve errors of each sample, and the noise that an operator feels."""

import math

import pytest
import torch

from envs.numerics import seeding
from envs.pdes import PDE, make_pde
from pirf_ray.metrics import physics, statistics
from pirf_ray.metrics.evaluation import evaluate_sets


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("operator", "sigma"), [("consistent", 1e-3), ("consistent", 1e-2), ("simpson", 3e-2)])
def test_the_noise_equivalent_finds_the_noise(pde: PDE, truth: torch.Tensor, operator: str, sigma: float) -> None:
    """Real fields with white noise of sigma x std, other noise than the probe's, are reported as sigma (where it is over the floor)."""
    fields = truth[4:].double()  # nearly all that the floor is of: only the noise differs
    noisy = fields + sigma * statistics.amplitude(fields)[:, None, None] * gaussian(3, *fields.shape)
    result = evaluate_sets(pde, {"base": noisy}, real=truth[:4], real_other=truth[4:])
    assert result["base"].residuals[operator].noise_equivalent == pytest.approx(sigma, rel=0.1)
    assert result.data.residuals[operator].noise_equivalent == 0


def test_the_noise_equivalent_by_hand() -> None:
    """residual = floor + slope sigma^2; nothing at and below the floor, no number without a slope."""
    assert physics.noise_equivalent(1.0 + 4.0 * 0.3**2, 1.0, 4.0) == pytest.approx(0.3)
    assert physics.noise_equivalent(0.9, 1.0, 4.0) == 0
    assert math.isnan(physics.noise_equivalent(2.0, 1.0, 0.0))


def test_every_sample_is_measured_alone(pde: PDE, sets: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    """In batches or not; a value that is not a number is infinite, one that is infinite stays so."""
    fields = sets["base"][:5].clone()
    fields[1, 0, 3, 4] = math.nan
    columns = physics.residuals(pde, fields)
    assert list(columns) == list(pde.operators)
    assert columns["consistent"].dtype == torch.float64
    assert columns["consistent"].isinf().tolist() == [False, True, False, False, False]
    expected = pde.residual(fields[2:3].double(), "consistent")
    torch.testing.assert_close(columns["consistent"][2:3], expected, rtol=1e-12, atol=0)
    monkeypatch.setattr(physics, "BATCH", 2)
    torch.testing.assert_close(physics.residuals(pde, fields), columns, rtol=1e-12, atol=0)


def test_exact_fields_violate_nothing_and_solve_themselves() -> None:
    pde = make_pde("Poisson-v0", 16)
    fields = pde.solve(0, "physics", range(3))
    errors, trivial = physics.resolve_errors(pde, fields)
    assert (errors < 1e-9).all() and (trivial > 0.1).all()
    assert physics.conditions(pde, fields).keys() == pde.conditions.keys()
    noisy = fields + 0.1 * statistics.amplitude(fields)[:, None, None] * seeding.normal(0, "noise", range(3), pde.shape)
    for name, column in physics.conditions(pde, noisy).items():
        assert (column > physics.conditions(pde, fields)[name]).all(), name
