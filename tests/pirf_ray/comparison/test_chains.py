"""The order of the work, without Ray: stopped and continued, with lost weights, with finished methods."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from comparison_cells import GRID, PLAN, TOO_STEEP, benchmark_at, drive, trained, without_seconds
from pirf_ray.comparison.cells import EvaluationCell, TrainingCell, TrialCell
from pirf_ray.comparison.chains import ChainMaker, count_jobs, failures, samples_of
from pirf_ray.comparison.jobs import Job, run_job
from pirf_ray.comparison.tuning import REFUSED, best_settings
from pirf_ray.methods import METHODS


def job_of(base: Path, **changes: object) -> Job:
    """Return a job on the tiny base model."""
    job = Job(kind="evaluate", env="Burgers-v0", method="base", base=base, plan=PLAN, settings={}, device="cpu", num_steps=(3,))
    return replace(job, **changes)


@pytest.mark.usefixtures("tilt")
def test_a_chain_tunes_trains_and_evaluates(tmp_path: Path, base: Path) -> None:
    with benchmark_at(tmp_path) as directory:
        maker = ChainMaker(directory, GRID, ["base", "tilt"])
        assert count_jobs(maker, [("Burgers-v0", "tilt")], ["tilt"]) == 7
        jobs = drive(maker.chain("Burgers-v0", "tilt", base))
        assert [job.kind for job in jobs] == ["tune"] * 3 + ["train", "evaluate"] * 2
        assert [job.num_steps for job in jobs if job.kind == "evaluate"] == [(2, 3), (3,)]
        assert count_jobs(maker, [("Burgers-v0", "tilt")], ["tilt"]) == 0
        assert drive(maker.chain("Burgers-v0", "tilt", base)) == []
        best = best_settings(directory.trials("Burgers-v0", "tilt"))
        evaluation = directory.evaluation("Burgers-v0", "tilt", 3, 1)
        assert evaluation.settings == best
        assert evaluation.nfe == evaluation.cost.network_forwards == 5
        for seed, sign in ((0, 1), (1, -1)):  # 4 updates, each a step of the learning rate
            shift = directory.load_weights("Burgers-v0", "tilt", seed)["shift"].item()
            assert shift == pytest.approx(sign * 4 * best["learning_rate"], rel=1e-5)
        assert set(directory.samples("Burgers-v0", ["tilt"])) == {("Burgers-v0", "tilt"), ("Burgers-v0", "data")}


@pytest.mark.usefixtures("tilt")
@pytest.mark.parametrize("stop_after", [1, 3, 4, 5])
def test_a_stopped_chain_goes_on_and_ends_with_the_same_cells(tmp_path: Path, base: Path, stop_after: int) -> None:
    def cells(root: Path, *stops: int | None) -> list[dict]:
        for stop in stops:
            with benchmark_at(root) as directory:
                drive(ChainMaker(directory, GRID, ["tilt"]).chain("Burgers-v0", "tilt", base), stop)
        lines = directory.journal.path.read_text().splitlines()
        assert [json.loads(line) for line in lines] == json.loads(json.dumps([cell.to_json() for cell in directory.cells()]))
        return without_seconds(directory.cells())

    assert cells(tmp_path / "stopped", stop_after, None) == cells(tmp_path / "whole", None)


@pytest.mark.usefixtures("tilt")
def test_lost_weights_are_trained_again(tmp_path: Path, base: Path) -> None:
    with benchmark_at(tmp_path) as directory:
        drive(ChainMaker(directory, GRID, ["tilt"]).chain("Burgers-v0", "tilt", base))
        (directory.root / "weights/Burgers-v0/tilt/0.safetensors").unlink()
        more = replace(GRID, num_steps=(2, 3, 4))
        jobs = drive(ChainMaker(directory, more, ["tilt"]).chain("Burgers-v0", "tilt", base))
    assert [job.kind for job in jobs] == ["train", "evaluate"]
    assert jobs[1].num_steps == (4,)


@pytest.mark.usefixtures("tilt")
def test_a_training_that_diverges_is_a_result(base: Path) -> None:
    steep = {"method": "tilt", "settings": {"learning_rate": TOO_STEEP}}
    (trial,) = run_job(job_of(base, kind="tune", trial=2, **steep)).cells
    assert isinstance(trial, TrialCell) and trial.metrics is None
    assert (trial.failed, trial.score, trial.trial) == ("too steep", REFUSED, 2)
    training = run_job(job_of(base, kind="train", seed=1, **steep))
    assert isinstance(training.cells[0], TrainingCell) and training.weights == {}
    assert (training.cells[0].failed, training.cells[0].seed) == ("too steep", 1)
    assert failures([trial, training.cells[0], trained("Burgers-v0", "tilt")]) == [
        "tune Burgers-v0 tilt: too steep",
        "train Burgers-v0 tilt: too steep",
    ]


@pytest.mark.usefixtures("tilt")
def test_a_method_whose_training_failed_is_not_evaluated(tmp_path: Path, base: Path) -> None:
    with benchmark_at(tmp_path) as directory:
        maker = ChainMaker(directory, replace(GRID, seeds=1), ["tilt"])
        for job in drive(maker.chain("Burgers-v0", "tilt", base), stop_after=3):
            assert job.kind == "tune"
        directory.add(trained("Burgers-v0", "tilt", failed="too steep"))
        assert drive(maker.chain("Burgers-v0", "tilt", base)) == []


def test_the_device_of_every_job_is_the_chains(tmp_path: Path, base: Path) -> None:
    with benchmark_at(tmp_path) as directory:
        chain = ChainMaker(directory, GRID, ["cocogen"], device="cuda").chain("Burgers-v0", "cocogen", base)
        assert next(chain).device == "cuda"


def test_finished_methods_share_the_samples_and_pay_for_them(base: Path) -> None:
    alone = run_job(job_of(base))
    both = run_job(job_of(base, finished=("base-corrected",)))
    base_cell, corrected = both.cells
    assert isinstance(base_cell, EvaluationCell) and isinstance(corrected, EvaluationCell)
    assert without_seconds([base_cell]) == without_seconds(alone.cells)
    assert corrected.method == "base-corrected"
    assert corrected.cost.network_forwards == 5
    assert corrected.cost.residual_gradients == 20 and base_cell.cost.residual_gradients == 0
    assert corrected.metrics.residuals["consistent"].mean < base_cell.metrics.residuals["consistent"].mean
    assert base_cell.data == corrected.data and base_cell.data.residuals["consistent"].mean > 0
    assert set(both.shown) == {"base", "base-corrected", "data"}
    assert {cell.key for cell in both.cells} == {("evaluate", "Burgers-v0", m, 3, 0) for m in ("base", "base-corrected")}
    with pytest.raises(TypeError, match="cocogen does not finish another method's samples"):
        run_job(job_of(base, finished=("cocogen",)))


def test_only_finished_methods_have_samples_of_another() -> None:
    finished = {name: samples_of(name) for name in METHODS if samples_of(name)}
    assert finished == {"base-corrected": "base", "pirf-ray": "pirf-ray-uncorrected"}
