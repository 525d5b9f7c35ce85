"""Every registered metric on sets that are known: equal, reordered, worse."""

import math

import pytest
import torch

from envs.pdes import make_pde
from pirf_ray.metrics import METRICS
from pirf_ray.metrics.statistics import amplitude

COUNT = 24
PDE8 = make_pde("Darcy-v0", 8)
REAL = PDE8.solve(0, "metrics", range(COUNT))
OTHER = PDE8.solve(1, "metrics", range(COUNT))
STD = amplitude(REAL)[:, None, None]
WORSE = {
    "more amplitude, shifted": 1.3 * OTHER + 0.5 * STD,
    "white noise": OTHER + STD * torch.randn(OTHER.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
}
"""Sets that every metric tells from real fields."""


def badness(name: str, value: float) -> float:
    """Return a number that is lower for a better value of a metric."""
    best = METRICS[name].best
    if math.isfinite(best):
        return abs(value - best)
    return -value if best > 0 else value


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_says_what_it_is_in_one_line(name: str) -> None:
    """The line of ``--list``."""
    (line,) = [line for line in METRICS.describe() if line.split("  ")[0].strip() == name]
    text = line.partition("  ")[2].strip()
    assert len(text.split()) >= 3 and text.endswith(".")


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_of_another_set_is_a_finite_number(name: str) -> None:
    value = METRICS[name](OTHER.float(), REAL.float(), PDE8)
    assert type(value) is float and math.isfinite(value)


@pytest.mark.parametrize("name", METRICS)
def test_equal_sets_have_the_best_value(name: str) -> None:
    """Distances are by cdist in float64: the distance of a field to itself is rounding, and its square root at most 1e-6."""
    value, best = METRICS[name](REAL, REAL.clone(), PDE8), METRICS[name].best
    if math.isfinite(best):
        assert value == pytest.approx(best, abs=2e-6)
    assert all(badness(name, value) < badness(name, METRICS[name](fields, REAL, PDE8)) for fields in WORSE.values())


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_the_samples_does_not_matter(name: str) -> None:
    """Sums of 24 terms in another order differ by rounding: 1e-15 of the terms, 1e-9 for differences of means."""
    shuffled = [torch.randperm(COUNT, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    value = METRICS[name](OTHER, REAL, PDE8)
    assert METRICS[name](OTHER[shuffled[0]], REAL[shuffled[1]], PDE8) == pytest.approx(value, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("change", WORSE)
@pytest.mark.parametrize("name", METRICS)
def test_a_planted_difference_is_seen(name: str, change: str) -> None:
    """It is worse than the difference of two sets of the same law."""
    before, after = (METRICS[name](fields, REAL, PDE8) for fields in (OTHER, WORSE[change]))
    assert badness(name, after) > badness(name, before)


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_leaves_the_fields_as_they_are(name: str) -> None:
    fields, real = OTHER.clone().requires_grad_(), REAL.clone()
    METRICS[name](fields, real, PDE8)
    assert torch.equal(fields, OTHER) and torch.equal(real, REAL) and fields.grad is None
