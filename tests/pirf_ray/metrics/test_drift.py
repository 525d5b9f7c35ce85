"""Drift: zero of the model itself, told by channel, inside or outside its limits."""

import math
from dataclasses import replace

import pytest
import torch

from envs.common.checks import ConfigError
from envs.pdes import make_pde
from pirf_ray.metrics.drift import Drift, DriftLimits, FidelityStatistics

NONE = Drift(amplitude_ratio=1.0, energy_ratio=1.0, spectrum_rise=0.0)


def statistics(*amplitude: float, energy: float = 0.1, spectrum: float = 0.2) -> FidelityStatistics:
    """Return statistics of two channels."""
    return FidelityStatistics(amplitude=torch.tensor(amplitude), energy=energy, spectrum=torch.tensor([spectrum, spectrum / 2]))


def test_a_model_does_not_drift_from_itself() -> None:
    pde = make_pde("Darcy-v0", 16)
    fields = pde.solve(0, "drift", range(24)).float()
    measured = FidelityStatistics.of(fields[:8], fields[8:], pde)
    assert measured.amplitude.shape == measured.spectrum.shape == (2,)
    assert Drift.between(measured, measured) == NONE
    assert NONE.inside(DriftLimits())


def test_the_channel_that_changed_most_is_told() -> None:
    """Amplitudes by the logarithm of their ratio: a halved one counts as much as a doubled one; spectra by their rise."""
    drift = Drift.between(statistics(1.5, 0.5), statistics(1.0, 1.0))
    assert (drift.amplitude_ratio, drift.energy_ratio, drift.spectrum_rise) == (0.5, 1.0, 0.0)
    assert Drift.between(statistics(2.5, 0.5), statistics(1.0, 1.0)).amplitude_ratio == 2.5
    moved = Drift.between(statistics(1.0, 1.0, energy=0.3, spectrum=0.4), statistics(1.0, 1.0))
    assert moved.energy_ratio == pytest.approx(3) and moved.spectrum_rise == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("changes", "inside"),
    [
        ({"amplitude_ratio": 1.02}, True),
        ({"amplitude_ratio": 0.979}, False),
        ({"energy_ratio": 0.5}, True),
        ({"energy_ratio": 1.051}, False),
        ({"spectrum_rise": -1.0}, True),
        ({"spectrum_rise": 0.101}, False),
        ({"energy_ratio": math.nan}, False),
        ({"amplitude_ratio": math.nan}, False),
        ({"spectrum_rise": math.nan}, False),
    ],
)
def test_limits(changes: dict[str, float], inside: bool) -> None:
    limits = DriftLimits(guard_amplitude=0.0200001, guard_energy=1.05, guard_spectrum=0.1)
    assert replace(NONE, **changes).inside(limits) == inside


@pytest.mark.parametrize("name", ["guard_amplitude", "guard_energy", "guard_spectrum"])
def test_limits_must_be_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} must be positive, got 0"):
        DriftLimits(**{name: 0.0})
