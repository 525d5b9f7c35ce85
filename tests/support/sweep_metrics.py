"""Metrics of a finished trial, limits, and results of evaluations, for tests of sweeps."""

from pirf_ray.metrics.results import Estimate, EvaluationResult, FidelityMetrics, ResidualMetrics, SetMetrics
from pirf_ray.training.guard import GuardSettings
from tune.goals import Limits, TrialMetrics

METRICS = TrialMetrics(
    residual=1e-3,
    over_floor=10.0,
    below_floor=False,
    base_residual=1e-1,
    energy=0.06,
    energy_ratio=1.01,
    amplitude_ratio=0.99,
    spectrum_rise=-0.1,
    resolve=0.02,
)
LIMITS = Limits(guard=GuardSettings(), residual=0.1)
OPERATORS = {"consistent": 1.0, "other": 7.0}
"""Residual operators of a result, and a factor of each one's residual."""


def evaluation_result(**sets: SetMetrics) -> EvaluationResult:
    """Return a result of two channels, a and u, whose rewarded operator is not the default."""
    return EvaluationResult(
        env_id="Darcy-v0",
        resolution=8,
        operators=list(OPERATORS),
        default_operator="consistent",
        unrewarded_operator="consistent",
        rewarded_operator="other",
        conditions=[],
        channels=["a", "u"],
        num_samples=4,
        num_real=16,
        sets=sets,
    )


def set_metrics(residual: float, amplitudes: dict[str, float], *, energy: float, spectrum: float) -> SetMetrics:
    """Return the metrics of a set. ``residual``: of the operator ``other``."""
    return SetMetrics(
        num_samples=4,
        num_nonfinite=0,
        residuals={name: _residual(residual * factor / OPERATORS["other"]) for name, factor in OPERATORS.items()},
        conditions={},
        resolve=_estimate(0.1),
        resolve_trivial=1.0,
        fidelity=FidelityMetrics(
            energy_distance=energy,
            energy_distance_unbiased=energy,
            energy_distance_same_law=energy,
            energy_distance_ratio_to_data=1.0,
            marginal_energy_distance=energy,
            log_spectrum_error=spectrum,
            mean_field_error=0.0,
            std_field_error=0.0,
            diversity_ratio=1.0,
            nearest_distance=1.0,
            amplitude_ratio=max(amplitudes.values()),
            high_wavenumber_ratio=1.0,
            amplitude_ratios=amplitudes,
            high_wavenumber_ratios=dict.fromkeys(amplitudes, 1.0),
        ),
    )


def _estimate(value: float) -> Estimate:
    return Estimate(mean=value, median=value, mean_interval=(value, value), median_interval=(value, value))


def _residual(value: float) -> ResidualMetrics:
    return ResidualMetrics(**vars(_estimate(value)), over_floor=value / 1e-3, below_floor=False, noise_equivalent=0.0)
