"""The report of a run: drawn whole, with little history, with broken samples."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from envs.pdes import PDE
from pirf_ray.evaluation.report import draw_report
from pirf_ray.learning.updates import TermMetrics, UpdateMetrics
from pirf_ray.metrics.drift import Drift, DriftLimits
from pirf_ray.metrics.results import EvaluationResult
from pirf_ray.training.guard import GuardMetrics
from pirf_ray.training.records import RolloutMetrics, Timing, UpdateRecord


def record(update: int, terms: dict[str, TermMetrics], guard: GuardMetrics | None = None) -> UpdateRecord:
    """Return the record of an update."""
    metrics = UpdateMetrics(reward=0.0, grad_norm=1.0, learning_rate=1e-4, skipped=0, weight_distance=0.1, terms=terms)
    return UpdateRecord(
        update=update,
        metrics=metrics,
        rollout=RolloutMetrics(sample_ids=(update,), staleness_max=0, samples_per_second=1.0),
        timing=Timing(wait=0.1, learn=0.1, sync=0.1),
        guard=guard,
    )


def guarded(residual: float, amplitude_ratio: float, energy_ratio: float) -> GuardMetrics:
    """Return a guard evaluation inside the limits."""
    return GuardMetrics(
        residual=residual,
        residual_median=residual / 2,
        over_floor=10.0,
        base_residual=1.0,
        drift=Drift(amplitude_ratio=amplitude_ratio, energy_ratio=energy_ratio, spectrum_rise=-0.1),
        limits=DriftLimits(),
        inside=True,
    )


@pytest.fixture(scope="module")
def samples(fields: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {name: fields[name].numpy() for name in ("base", "tuned", "data")}


def png_size(path: Path) -> tuple[int, ...]:
    """Return rows and columns of a PNG that is not of one colour."""
    image = imread(path)
    assert np.ptp(image[..., :3]) > 0.5
    return tuple(image.shape[:2])


def test_report_with_guard(tmp_path: Path, pde: PDE, result: EvaluationResult, samples: dict[str, np.ndarray]) -> None:
    guards = {4: guarded(0.2, 0.99, 1.01), 8: guarded(0.1, 0.98, 1.02)}
    history = [
        record(i, {"consistent": TermMetrics(is_residual=True, mean=1 / i, median=0.5 / i)}, guards.get(i)) for i in range(1, 9)
    ]
    path = tmp_path / "report.png"
    draw_report(path, pde=pde, history=history, result=replace(result, kept_update=8), samples=samples)
    assert min(png_size(path)) > 800
    assert [file.name for file in tmp_path.iterdir()] == ["report.png"]


def test_report_with_a_minimal_history_and_a_broken_sample(
    tmp_path: Path, pde: PDE, result: EvaluationResult, samples: dict[str, np.ndarray]
) -> None:
    """No guard evaluation, no residual among the terms, one sample of each set, one of them not finite."""
    few = {name: fields[:1].copy() for name, fields in samples.items()}
    few["tuned"][0, 0, 2, 2] = math.nan
    path = tmp_path / "report.png"
    draw_report(path, pde=pde, history=[record(1, {})], result=result, samples=few)
    assert min(png_size(path)) > 800


def test_report_without_a_history(tmp_path: Path, pde: PDE, result: EvaluationResult, samples: dict[str, np.ndarray]) -> None:
    draw_report(tmp_path / "report.png", pde=pde, history=[], result=result, samples=samples)
    assert min(png_size(tmp_path / "report.png")) > 800


@pytest.mark.parametrize("emptied", [True, False])
def test_report_names_missing_sets(
    tmp_path: Path, pde: PDE, result: EvaluationResult, samples: dict[str, np.ndarray], emptied: bool
) -> None:
    few = {**samples, "tuned": samples["tuned"][:0]} if emptied else {k: v for k, v in samples.items() if k != "tuned"}
    with pytest.raises(ValueError, match=r"missing or empty: \['tuned'\]"):
        draw_report(tmp_path / "r.png", pde=pde, history=[], result=result, samples=few)
    assert not list(tmp_path.iterdir())


def test_the_report_of_another_reward_has_a_panel_of_it(
    tmp_path: Path, pde: PDE, result: EvaluationResult, samples: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the residual, which a PDE with operators has whatever the reward is."""
    drawn = []
    monkeypatch.setattr("pirf_ray.evaluation.report.save", lambda figure, path, dpi: drawn.append(figure))
    guard = replace(guarded(0.2, 0.99, 1.01), reward=-2.0)
    sets = {name: replace(metrics, named={"reward": -1.0}) for name, metrics in result.sets.items()}
    history = [record(1, {}), record(2, {}, guard)]
    draw_report(tmp_path / "r.png", pde=pde, history=history, result=replace(result, sets=sets), samples=samples)
    draw_report(tmp_path / "r.png", pde=pde, history=history, result=result, samples=samples)
    titles = [[axes.get_title() for axes in figure.subfigs[0].axes] for figure in drawn]
    assert titles[0][:2] == ["Residual while training\n(consistent operator)", "Reward while training"]
    assert titles[1][0] == titles[0][0] and "Reward while training" not in titles[1]
    (panel,) = (axes for axes in drawn[0].subfigs[0].axes if axes.get_title() == "Reward while training")
    assert {"training batch", "guard samples", "base", "real data"} <= set(panel.get_legend_handles_labels()[1])
    assert "mean reward -1 → -1 (-1)" in drawn[0].get_suptitle()
