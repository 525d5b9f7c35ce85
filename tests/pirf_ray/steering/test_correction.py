"""Corrections: descent on each sample's own residual, no further than exact data, given channels untouched."""

import itertools

import pytest
import torch

from envs.common.checks import ConfigError
from envs.numerics import seeding
from envs.pdes import make_pde
from pirf_ray.steering.correction import Correction, CorrectionSettings, correct, residual_floor

SHAPE = (2, 8, 8)
SCALES = torch.linspace(1.0, 3.0, 2 * 8 * 8, dtype=torch.float64).reshape(SHAPE)


def quadratic(x: torch.Tensor) -> torch.Tensor:
    """Mean of (scale x)^2: zero at x = 0, condition number 9."""
    return (SCALES.to(x) * x).square().flatten(1).mean(1)


def samples(count: int = 3) -> torch.Tensor:
    return seeding.normal(0, "correction", range(count), SHAPE)


def test_the_first_step_is_a_quarter_of_polyaks() -> None:
    """x - (1/4) r / ||g||^2 g with g = 2 scale^2 x / n written out; the residual of a quadratic falls by it."""
    x = samples()
    n = x[0].numel()
    r = ((SCALES * x) ** 2).flatten(1).mean(1)
    g = 2 * SCALES**2 * x / n
    size = 0.25 * r / (g**2).flatten(1).sum(1)
    moved = correct(x, quadratic, steps=1, floor=0.0)
    torch.testing.assert_close(moved, x - size[:, None, None, None] * g)
    assert (quadratic(moved) < r).all()


def test_twenty_steps_end_a_quadratic() -> None:
    """Barzilai & Borwein's steps converge at least R-linearly on convex quadratics; plain descent with the best fixed step would
    leave ((9-1)/(9+1))^(2 * 20) = 1.3e-4 of it (condition number of the residual's Hessian: 3^2 = 9)."""
    x = samples()
    assert (quadratic(correct(x, quadratic, steps=20, floor=0.0)) < 1e-6 * quadratic(x)).all()


def test_more_steps_are_never_worse_and_no_sample_knows_of_another() -> None:
    pde = make_pde("Burgers-v0", 16)
    x = pde.normalizer.to_model(pde.solve(0, "correction", range(3))).float()
    x = x + 0.05 * seeding.normal(0, "noise", range(3), pde.shape).float()
    residuals = [pde.residual(pde.normalizer.to_physical(Correction(pde, k)(x)), "consistent") for k in (0, 1, 3, 8, 20)]
    for fewer, more in itertools.pairwise(residuals):
        assert (more <= fewer * (1 + 1e-5)).all()
    assert (residuals[-1] < 0.01 * residuals[0]).all()
    together = Correction(pde, 8)(x)
    alone = torch.cat([Correction(pde, 8)(x[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-5)  # batches change float32 rounding, which steps amplify


def test_none_goes_under_the_floor_and_one_that_would_lands_on_it() -> None:
    x, floor = samples(), 0.05
    r = quadratic(correct(x, quadratic, steps=40, floor=floor))
    assert (r >= floor).all()
    assert (r < floor * 1.01).all()  # ten bisections of the last step


def test_exact_data_stay_as_they_are() -> None:
    """Most of the data lie under their mean residual, the others go no further than to it."""
    pde = make_pde("Burgers-v0", 16)
    x = pde.normalizer.to_model(pde.solve(0, "calibration", range(128))).float()
    floor = residual_floor(pde, "consistent")
    before = pde.residual(pde.normalizer.to_physical(x), "consistent")
    moved = Correction(pde, 20)(x)
    under = before <= floor
    assert 0 < under.sum() < 128
    assert torch.equal(moved[under], x[under])
    after = pde.residual(pde.normalizer.to_physical(moved), "consistent")
    assert (after[~under] >= floor * 0.999).all()


def test_given_channels_stay() -> None:
    pde = make_pde("Poisson-v0", 16)
    x = pde.normalizer.to_model(pde.solve(0, "correction", range(2))).float()
    x = x + 0.01 * seeding.normal(0, "noise", range(2), pde.shape).float()
    moved = Correction(pde, 5)(x)
    assert torch.equal(moved[:, 0], x[:, 0])
    assert not torch.equal(moved[:, 1], x[:, 1])


def test_a_broken_sample_stays_and_harms_no_other() -> None:
    x = samples()
    x[1, 0, 0, 0] = torch.nan
    moved = correct(x, quadratic, steps=10, floor=0.0)
    assert torch.equal(moved[1], x[1]) or torch.equal(moved[1].isnan(), x[1].isnan())
    assert (quadratic(moved)[[0, 2]] < 1e-2 * quadratic(x)[[0, 2]]).all()


@pytest.mark.parametrize("count", [0, 2])
def test_no_step_and_no_sample_are_nothing_to_do(count: int) -> None:
    x = samples(count) if count else torch.empty((0, *SHAPE))
    assert torch.equal(correct(x, quadratic, steps=0 if count else 3, floor=0.0), x)
    with pytest.raises(ValueError, match="corrections must not be negative, got -1"):
        correct(x, quadratic, steps=-1, floor=0.0)


def test_a_correction_is_of_the_named_operator_or_of_a_residual_of_ones_own() -> None:
    pde = make_pde("Burgers-v0", 16)
    x = pde.normalizer.to_model(pde.solve(0, "correction", range(2))).float()
    x = x + 0.05 * seeding.normal(0, "noise", range(2), pde.shape).float()
    named, default = Correction(pde, 3, "simpson"), Correction(pde, 3)
    assert (named.floor, default.floor) == (residual_floor(pde, "simpson"), residual_floor(pde, "consistent"))
    assert (named.steps, default.given) == (3, pde.input_channels)
    assert not torch.equal(named(x), default(x))
    own = Correction(pde, 3, residual=lambda y: pde.residual(pde.normalizer.to_physical(y), "simpson"))
    assert own.floor == default.floor
    with torch.no_grad():
        simpson = [pde.residual(pde.normalizer.to_physical(y), "simpson") for y in (own(x), x)]
    assert (simpson[0] < simpson[1]).all()


def test_a_negative_number_of_corrections_is_refused() -> None:
    with pytest.raises(ConfigError, match="--corrections must not be negative, got -1"):
        CorrectionSettings(corrections=-1)
