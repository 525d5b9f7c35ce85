"""What a benchmark compares, and flags that cannot work."""

from dataclasses import replace
from pathlib import Path

import pytest

from commands import refuse
from comparison_cells import GRID, PLAN, benchmark_at
from envs.common.checks import ConfigError
from pirf_ray import benchmark as command
from pirf_ray.comparison.jobs import Job
from pirf_ray.comparison.plan import EvaluationGrid, JobSettings
from pirf_ray.comparison.run import JobProgress, make_header, select
from pirf_ray.diffusion.checkpoints import CheckpointError


@pytest.mark.parametrize(
    ("field", "value"), [("samples", 1), ("trials", 0), ("budget", 0.0), ("trial_budget", -1.0), ("train_steps", 0)]
)
def test_a_plan_that_cannot_work_names_its_flag(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{field.replace('_', '-')} must be"):
        replace(PLAN, **{field: value})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--methods", "wishful"],
            "--methods: unknown method 'wishful'; known: adjoint-matching, alignprop, base, base-corrected",
        ),
        (
            ["--repeated", "wishful"],
            "--methods: unknown method 'wishful'; known: adjoint-matching, alignprop, base, base-corrected",
        ),
        (["--env", "Navier-v0"], "--env: unknown env 'Navier-v0'; known: Burgers-v0"),
        (["--preset", "huge"], "--preset: unknown preset 'huge'"),
        (["--num-steps", "1"], "--num-steps must be at least 2 each, got (1,)"),
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--resolution", "64"], "no base model ships at 64x64"),
        (["--samples", "1"], "--samples must be at least 2, got 1"),
        (["--job-cpus", "-1"], "--job-cpus must not be negative, got -1"),
        (["--job-cpus", "512", "--methods", "base"], "--job-cpus, --job-gpus: a job needs 512 CPUs and 0 GPUs"),
        (["--job-gpus", "64", "--methods", "base"], "--job-cpus, --job-gpus: a job needs 1 CPUs and 64 GPUs"),
    ],
)
def test_wrong_flags_are_named_before_anything_starts(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refuse(command.main, ["--out", str(tmp_path / "out"), *flags], capsys)
    assert not (tmp_path / "out" / "cells.jsonl").exists()


def test_a_base_model_must_be_one_of_the_resolution(base: Path) -> None:
    with pytest.raises(CheckpointError, match="--base .*: expected a base model of Burgers-v0 at 32x32"):
        select(envs=["Burgers-v0"], bases=[base], methods=[], resolution=32, grid=GRID)


def test_the_base_and_what_is_finished_are_always_there() -> None:
    grid = EvaluationGrid()
    selection = select(envs=["Burgers-v0"], bases=[], methods=["pirf-ray"], resolution=32, grid=grid)
    assert selection.methods == ["base", "pirf-ray-uncorrected", "pirf-ray"]
    assert list(selection.bases) == ["Burgers-v0"]


def test_the_grid_spends_later_seeds_on_a_few_methods_and_steps() -> None:
    grid = EvaluationGrid(num_steps=(20, 5, 10, 5), seeds=2, repeated=("base",), repeated_steps=(10, 80))
    assert (grid.steps_of(0), grid.steps_of(1)) == ((5, 10, 20), (10,))
    assert (grid.seeds_of("base"), grid.seeds_of("cocogen")) == (range(2), range(1))


def test_a_gpu_that_is_reserved_is_computed_on() -> None:
    assert (JobSettings().device, JobSettings(job_gpus=0.5).device) == ("cpu", "cuda")


def test_the_header_counts_the_seeds_of_finished_methods(tmp_path: Path, base: Path) -> None:
    grid = replace(GRID, repeated=("base",))
    selection = select(
        envs=["Burgers-v0"], bases=[base], methods=["base-corrected", "cocogen"], resolution=PLAN.resolution, grid=grid
    )
    with benchmark_at(tmp_path) as directory:
        header = make_header(directory, selection, "the command")
    assert header.seeds == {"base": 2, "base-corrected": 2, "cocogen": 1}
    assert header.command == "the command" and header.num_steps == [2, 3]
    assert header.to_json()["plan"] == PLAN.to_json()


def test_progress_names_each_job_and_what_is_left(base: Path) -> None:
    lines: list[str] = []
    progress = JobProgress(lines.append, 3)
    job = Job(kind="evaluate", env="Burgers-v0", method="base", base=base, plan=PLAN, settings={}, device="cpu", num_steps=(2, 3))
    progress.started(job)
    progress.done(job)
    assert lines[0].startswith("[1/3] evaluate Burgers-v0 base, seed 0, N = 2, 3: 0.0 s | about 0 min left")
