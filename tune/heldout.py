"""The held-out comparison: best trial and preset on noise and real data that no trial has seen.

The trials chose the best one by their own noise, so their metrics flatter it. These do not.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from envs.common.files import write_json
from pirf_ray.cli.progress import progress_bar
from pirf_ray.evaluation.models import evaluate_model
from pirf_ray.evaluation.pages import Table
from pirf_ray.training.models import load_model
from tune.directory import Sweep
from tune.goals import TrialMetrics, kept
from tune.studies import SweepStudy

TEST = "test.json"
TEST_SEED = 10_000
"""Added to the runs' seed."""


@dataclass(frozen=True, kw_only=True)
class HeldOutTrial:
    """One trial on held-out noise and data."""

    trial: int
    """Number of the trial."""
    nfe: int
    """Network evaluations per sample."""
    inside: bool
    """Whether the constraints are kept."""
    metrics: TrialMetrics
    """Metrics on the held-out noise."""

    def to_json(self) -> dict[str, Any]:
        """Return the trial as test.json holds it."""
        return {"trial": self.trial, "nfe": self.nfe, "inside": self.inside, "figures": self.metrics.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "HeldOutTrial":
        """Read the trial from test.json."""
        metrics = TrialMetrics.from_json(data["figures"])
        return cls(trial=data["trial"], nfe=data["nfe"], inside=data["inside"], metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The preset's trial and the best trial on the same held-out noise and data."""

    samples: int
    """Samples of each trial."""
    real: int
    """Held-out real fields."""
    seed: int
    """Seed of noise and data."""
    preset: HeldOutTrial | None
    """The preset's trial; None if it failed."""
    best: HeldOutTrial
    """The best trial."""

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as test.json holds it."""
        return {**vars(self), "preset": self.preset and self.preset.to_json(), "best": self.best.to_json()}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "Comparison":
        """Read the comparison from test.json."""
        return cls(
            samples=data["samples"],
            real=data["real"],
            seed=data["seed"],
            preset=HeldOutTrial.from_json(data["preset"]) if data["preset"] else None,
            best=HeldOutTrial.from_json(data["best"]),
        )


def compare(sweep: Sweep, study: SweepStudy, *, samples: int, device: str) -> Comparison:
    """Measure the sweep's first trial, the preset's, and its best, each with its own sampler; write test.json."""
    ranked = [trial.number for trial in study.ranked()]
    first, best = study.own()[0].number, ranked[0]
    seed = sweep.config.seed + TEST_SEED
    numbers = sorted({first, best} & set(ranked))
    measured = {number: _measure(sweep, study, number, samples, seed, device) for number in numbers}
    comparison = Comparison(
        samples=samples, real=sweep.arguments.real, seed=seed, preset=measured.get(first), best=measured[best]
    )
    write_json(sweep.root / TEST, comparison.to_json())
    return comparison


def _measure(sweep: Sweep, study: SweepStudy, number: int, samples: int, seed: int, device: str) -> HeldOutTrial:
    model = load_model(sweep.run(number)).model.to(device)
    evaluation = evaluate_model(
        model, samples=samples, real=sweep.arguments.real, seed=seed, progress=progress_bar(f"testing trial {number}")
    )
    metrics = TrialMetrics.of(evaluation.result)
    inside = kept(metrics.constraints(study.goal, study.limits))
    return HeldOutTrial(trial=number, nfe=model.process.num_evaluations, inside=inside, metrics=metrics)


Cell = Callable[[HeldOutTrial], str]
COLUMNS: dict[str, Cell] = {
    "trial": lambda t: str(t.trial),
    "NFE": lambda t: str(t.nfe),
    "residual": lambda t: f"{t.metrics.residual:.4g}",
    "over floor": lambda t: f"{t.metrics.over_floor:.3g}" + (" below floor!" if t.metrics.below_floor else ""),
    "energy / base": lambda t: f"{t.metrics.energy_ratio:.3f}",
    "amplitude / base": lambda t: f"{t.metrics.amplitude_ratio:.3f}",
    "spectrum rise": lambda t: f"{t.metrics.spectrum_rise:+.3f}",
    "re-solve": lambda t: f"{t.metrics.resolve:.4g}",
    "limits": lambda t: "inside" if t.inside else "outside",
}


def heldout_table(comparison: Comparison) -> Table:
    """Return the table of a comparison."""
    rows = {"preset": comparison.preset, "best": comparison.best}
    return Table(
        title=f"held-out: {comparison.samples} samples, {comparison.real} real fields that no trial has seen",
        columns=["", *COLUMNS],
        rows=[[name, *(cell(trial) for cell in COLUMNS.values())] for name, trial in rows.items() if trial],
    )
