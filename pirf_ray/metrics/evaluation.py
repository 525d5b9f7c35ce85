"""The evaluation of sample sets: all metrics of each set, and of real data in the same way."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from envs.pdes import PDE
from pirf_ray.metrics import distances, physics, spectra, statistics
from pirf_ray.metrics.base import Metric
from pirf_ray.metrics.results import DATA, Estimate, EvaluationResult, FidelityMetrics, ResidualMetrics, SetMetrics
from pirf_ray.metrics.scalars import farthest_from_one


def evaluate_sets(
    pde: PDE,
    sets: Mapping[str, torch.Tensor],
    *,
    real: torch.Tensor,
    real_other: torch.Tensor,
    rewarded: str | None = None,
    metrics: Mapping[str, Metric] | None = None,
    seed: int = 0,
) -> EvaluationResult:
    """Return the metrics of each set (n, c, h, w) against the held-out fields ``real`` (m, c, h, w), physical units.

    ``real_other`` holds held-out fields other than ``real``. Its first n fields are evaluated like a generated set, under the
    name ``data``. Only the residuals of ``data`` are over all held-out fields, because their means are the floors. A few windows
    of a flow may be of one or two trajectories.

    ``rewarded`` is the operator of the reward, by default the PDE's default operator. ``metrics``: further metrics of each set, by
    name. Intervals are 95% bootstrap intervals over samples; held-out fields that are solved together (``pde.solved_together``)
    are drawn together. A residual or an error that is nan counts as infinity. The fidelity of a set with a non-finite sample
    is nan. Metrics of parts that the PDE leaves out are None or absent.
    """
    count = _common_count(sets, real_other)
    all_sets = {**sets, DATA: real_other[:count]}
    residuals = {name: physics.residuals(pde, fields) for name, fields in sets.items()}
    residuals[DATA] = physics.residuals(pde, torch.cat([real.cpu(), real_other.cpu()]))
    floors = _Floors(pde, residuals[DATA], all_sets[DATA], seed)
    compared = {name: floors.compare(columns, is_data=name == DATA) for name, columns in residuals.items()}
    measured = {
        name: _set_metrics(pde, fields, real, compared[name], seed=seed, block=pde.solved_together if name == DATA else 1)
        for name, fields in all_sets.items()
    }
    named = {name: {n: m(fields, real, pde) for n, m in (metrics or {}).items()} for name, fields in all_sets.items()}
    reference = measured[DATA].fidelity.energy_distance
    return EvaluationResult(
        env_id=pde.env_id,
        resolution=pde.resolution,
        operators=_operator_order(pde),
        default_operator=pde.default_operator,
        unrewarded_operator=pde.unrewarded_operator,
        rewarded_operator=rewarded or pde.default_operator,
        conditions=list(pde.conditions),
        channels=list(pde.channels),
        num_samples=count,
        num_real=len(real),
        sets={name: replace(_over_reference(own, reference), named=named[name]) for name, own in measured.items()},
    )


def _set_metrics(
    pde: PDE, fields: torch.Tensor, real: torch.Tensor, residuals: dict[str, ResidualMetrics], *, seed: int, block: int
) -> SetMetrics:
    """Return all metrics of a set whose residuals are measured already."""
    errors, trivial = physics.resolve_errors(pde, fields)
    conditions = physics.conditions(pde, fields)
    return SetMetrics(
        num_samples=len(fields),
        num_nonfinite=_count_nonfinite(fields),
        residuals=residuals,
        conditions={name: estimate(column, seed=seed, block=block) for name, column in conditions.items()},
        resolve=None if errors is None else estimate(errors, seed=seed, block=block),
        resolve_trivial=None if trivial is None else trivial.median().item(),
        fidelity=fidelity_metrics(pde, fields, real),
    )


def _over_reference(metrics: SetMetrics, reference: float) -> SetMetrics:
    """Return the metrics with the ratio of the energy distance to the energy distance ``reference`` of real data."""
    fidelity = metrics.fidelity
    return replace(metrics, fidelity=replace(fidelity, energy_distance_ratio_to_data=fidelity.energy_distance / reference))


def _common_count(sets: Mapping[str, torch.Tensor], real_other: torch.Tensor) -> int:
    if not sets:
        raise ValueError("sets must hold at least one set of samples, got none")
    if DATA in sets:
        raise ValueError(f"the name {DATA!r} is kept for real data; give these fields as real_other")
    counts = {name: len(fields) for name, fields in sets.items()}
    count = min(counts.values())
    if len(set(counts.values())) > 1 or count < 2:
        raise ValueError(f"sets must have the same number of samples, at least 2: energy distances depend on it; got {counts}")
    if len(real_other) < count:
        raise ValueError(f"real_other must hold at least as many samples as each set, {count}, got {len(real_other)}")
    return count


def _operator_order(pde: PDE) -> list[str]:
    """Return the default operator, the unrewarded operator, then the others. Empty if the PDE has no operators."""
    first = [name for name in (pde.default_operator, pde.unrewarded_operator) if name]
    return first + [name for name in pde.operators if name not in first]


def _count_nonfinite(fields: torch.Tensor) -> int:
    return int((~fields.isfinite().flatten(1).all(1)).sum())


def estimate(column: torch.Tensor, *, seed: int, block: int) -> Estimate:
    """Return mean and median of per-sample values (n,), of which ``block`` consecutive values depend on each other."""
    return Estimate(
        mean=column.mean().item(),
        median=column.median().item(),
        mean_interval=statistics.bootstrap_interval(column, "mean", seed=seed, block=block),
        median_interval=statistics.bootstrap_interval(column, "median", seed=seed, block=block),
    )


class _Floors:
    """Residuals of real data and noise sensitivity of each operator."""

    def __init__(self, pde: PDE, columns: dict[str, torch.Tensor], fields: torch.Tensor, seed: int) -> None:
        self.seed, self.block = seed, pde.solved_together
        self.of_data = {name: estimate(column, seed=seed, block=self.block) for name, column in columns.items()}
        self.slopes = {name: physics.noise_sensitivity(pde, fields, name, seed=seed) for name in columns}

    def compare(self, columns: dict[str, torch.Tensor], *, is_data: bool) -> dict[str, ResidualMetrics]:
        """Return the metrics of a set's residuals (n,) by operator."""
        return {operator: self._compare(operator, column, is_data=is_data) for operator, column in columns.items()}

    def _compare(self, operator: str, column: torch.Tensor, *, is_data: bool) -> ResidualMetrics:
        """Return the metrics of residuals (n,). They are below the floor if the mean's interval is below real data's interval."""
        floor = self.of_data[operator]
        own = floor if is_data else estimate(column, seed=self.seed, block=1)
        return ResidualMetrics(
            **vars(own),
            over_floor=own.mean / max(floor.mean, 1e-300),
            below_floor=not is_data and own.mean_interval[1] < floor.mean_interval[0],
            noise_equivalent=physics.noise_equivalent(own.mean, floor.mean, self.slopes[operator]),
        )


def fidelity_metrics(pde: PDE, fields: torch.Tensor, real: torch.Tensor) -> FidelityMetrics:
    """Return the closeness of fields to real fields.

    Ratios are given for each channel, and for the channel whose ratio is farthest from 1. The ratio to a second held-out set,
    which this function does not know, is 1.
    """
    fields = fields.to(real.device)
    pairs, periodic = distances.compare(fields, real), pde.grid.periodic
    amplitudes = statistics.amplitude_ratio(fields, real)
    high = spectra.high_wavenumber_ratio(fields, real, periodic)
    return FidelityMetrics(
        energy_distance=pairs.energy,
        energy_distance_unbiased=pairs.energy_squared_unbiased,
        energy_distance_same_law=pairs.energy_same_law,
        energy_distance_ratio_to_data=1.0,
        marginal_energy_distance=_marginal_distance(pde, fields, real),
        log_spectrum_error=spectra.log_spectrum_error(fields, real, periodic),
        mean_field_error=statistics.mean_field_error(fields, real),
        std_field_error=statistics.std_field_error(fields, real),
        diversity_ratio=pairs.diversity_ratio,
        nearest_distance=pairs.nearest,
        amplitude_ratio=farthest_from_one(amplitudes),
        high_wavenumber_ratio=farthest_from_one(high),
        amplitude_ratios=dict(zip(pde.channels, amplitudes.tolist(), strict=True)),
        high_wavenumber_ratios=dict(zip(pde.channels, high.tolist(), strict=True)),
    )


def _marginal_distance(pde: PDE, fields: torch.Tensor, real: torch.Tensor) -> float | None:
    """Return the energy distance of the marginal. None if the PDE has no part of known law."""
    return distances.marginal_energy_distance(pde, fields, real) if pde.provides("marginal") else None
