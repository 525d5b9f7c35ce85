"""Every measure of every set of samples, with real data measured beside them in the same way."""

from collections.abc import Mapping
from dataclasses import replace

import torch

from envs.pdes import PDE
from pirf_ray.metrics import distances, physics, spectra, statistics
from pirf_ray.metrics.results import DATA, Estimate, EvaluationResult, FidelityMetrics, ResidualMetrics, SetMetrics


def evaluate_sets(
    pde: PDE,
    sets: Mapping[str, torch.Tensor],
    *,
    real: torch.Tensor,
    real_other: torch.Tensor,
    rewarded: str | None = None,
    seed: int = 0,
) -> EvaluationResult:
    """Measure each set (n, c, h, w) against the held-out fields ``real`` (m, c, h, w), physical units.

    ``real_other``, held-out fields disjoint from ``real``, is evaluated exactly like a generated set, cut to the same n:
    its metrics stand under ``data``. Only its residuals, which do not depend on n, are of all held-out fields: their means are
    the floors, and 48 windows of a flow may be of two trajectories. ``rewarded``: the operator that was rewarded (default: the
    PDE's default). Intervals are 95% bootstrap intervals over samples, of held-out fields over what is solved together
    (``pde.solved_together``). A sample whose residual or error is not finite counts as infinitely wrong; a set that holds one
    has fidelity nan.
    """
    count = _common_count(sets, real_other)
    all_sets = {**sets, DATA: real_other[:count]}
    residuals = {name: physics.residuals(pde, fields) for name, fields in sets.items()}
    residuals[DATA] = physics.residuals(pde, torch.cat([real.cpu(), real_other.cpu()]))
    floors = _Floors(pde, residuals[DATA], all_sets[DATA], seed)
    measured = {
        name: SetMetrics(
            num_samples=count,
            num_nonfinite=_count_nonfinite(fields),
            residuals={
                operator: floors.compare(operator, column, is_data=name == DATA) for operator, column in residuals[name].items()
            },
            **_other_metrics(pde, fields, seed=seed, block=pde.solved_together if name == DATA else 1),
            fidelity=fidelity_metrics(pde, fields, real),
        )
        for name, fields in all_sets.items()
    }
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
        sets={name: _over_reference(metrics, reference) for name, metrics in measured.items()},
    )


def _over_reference(metrics: SetMetrics, reference: float) -> SetMetrics:
    """Return the metrics with the energy distance set in relation to that of real data."""
    fidelity = metrics.fidelity
    return replace(metrics, fidelity=replace(fidelity, energy_distance_ratio_to_data=fidelity.energy_distance / reference))


def _common_count(sets: Mapping[str, torch.Tensor], real_other: torch.Tensor) -> int:
    if not sets:
        raise ValueError("sets must hold at least one set of samples, got none")
    if DATA in sets:
        raise ValueError(f"the name {DATA!r} is kept for real data; give those fields as real_other")
    counts = {name: len(fields) for name, fields in sets.items()}
    count = min(counts.values())
    if len(set(counts.values())) > 1 or count < 2:
        raise ValueError(f"sets must have the same number of samples, at least 2: energy distances depend on it; got {counts}")
    if len(real_other) < count:
        raise ValueError(f"real_other must hold at least as many samples as each set, {count}, got {len(real_other)}")
    return count


def _operator_order(pde: PDE) -> list[str]:
    """Return the default operator, the unrewarded one, the others."""
    first = [pde.default_operator, pde.unrewarded_operator]
    return first + [name for name in pde.operators if name not in first]


def _count_nonfinite(fields: torch.Tensor) -> int:
    return int((~fields.isfinite().flatten(1).all(1)).sum())


def estimate(column: torch.Tensor, *, seed: int, block: int) -> Estimate:
    """Return mean and median of per-sample values (n,). ``block``: so many consecutive samples depend on each other."""
    mean, median = (statistics.bootstrap_interval(column, kind, seed=seed, block=block) for kind in ("mean", "median"))  # type: ignore[arg-type]
    return Estimate(mean=column.mean().item(), median=column.median().item(), mean_interval=mean, median_interval=median)


class _Floors:
    """What real data's residuals are, and what noise each operator feels."""

    def __init__(self, pde: PDE, columns: dict[str, torch.Tensor], fields: torch.Tensor, seed: int) -> None:
        self.seed, self.block = seed, pde.solved_together
        self.of_data = {name: estimate(column, seed=seed, block=self.block) for name, column in columns.items()}
        self.slopes = {name: physics.noise_sensitivity(pde, fields, name, seed=seed) for name in columns}

    def compare(self, operator: str, column: torch.Tensor, *, is_data: bool) -> ResidualMetrics:
        """Return the metrics of a set's residuals. Below the floor: the mean's whole interval lies below that of real data."""
        floor = self.of_data[operator]
        own = floor if is_data else estimate(column, seed=self.seed, block=1)
        return ResidualMetrics(
            **vars(own),
            over_floor=own.mean / max(floor.mean, 1e-300),
            below_floor=not is_data and own.mean_interval[1] < floor.mean_interval[0],
            noise_equivalent=physics.noise_equivalent(own.mean, floor.mean, self.slopes[operator]),
        )


def _other_metrics(pde: PDE, fields: torch.Tensor, *, seed: int, block: int) -> dict[str, object]:
    """Return conditions and re-solve errors of a set."""
    errors, trivial = physics.resolve_errors(pde, fields)
    return {
        "conditions": {
            name: estimate(column, seed=seed, block=block) for name, column in physics.conditions(pde, fields).items()
        },
        "resolve": estimate(errors, seed=seed, block=block),
        "resolve_trivial": trivial.median().item(),
    }


def fidelity_metrics(pde: PDE, fields: torch.Tensor, real: torch.Tensor) -> FidelityMetrics:
    """Measure the likeness of fields to real ones. Of ratios of several channels the farthest from 1 stands, and each."""
    fields = fields.to(real.device)
    pairs, periodic = distances.compare(fields, real), pde.grid.periodic
    amplitudes = statistics.amplitude_ratio(fields, real)
    high = spectra.high_wavenumber_ratio(fields, real, periodic)
    return FidelityMetrics(
        energy_distance=pairs.energy,
        energy_distance_unbiased=pairs.energy_squared_unbiased,
        energy_distance_same_law=pairs.energy_same_law,
        energy_distance_ratio_to_data=1.0,
        marginal_energy_distance=distances.marginal_energy_distance(pde, fields, real),
        log_spectrum_error=spectra.log_spectrum_error(fields, real, periodic),
        mean_field_error=statistics.mean_field_error(fields, real),
        std_field_error=statistics.std_field_error(fields, real),
        diversity_ratio=pairs.diversity_ratio,
        nearest_distance=pairs.nearest,
        amplitude_ratio=_farthest(amplitudes),
        high_wavenumber_ratio=_farthest(high),
        amplitude_ratios=dict(zip(pde.channels, amplitudes.tolist(), strict=True)),
        high_wavenumber_ratios=dict(zip(pde.channels, high.tolist(), strict=True)),
    )


def _farthest(ratio: torch.Tensor) -> float:
    """Return the ratio farthest from 1 on a logarithmic scale."""
    return ratio[ratio.log().abs().argmax()].item()
