"""The benchmark without Ray: cells that survive, trials, the order of the work, what a job measures."""

import json
import math
from dataclasses import replace
from pathlib import Path

import optuna
import pytest
import torch

from envs.common.checks import ConfigError
from envs.common.files import DirectoryTakenError
from pirf_ray import benchmark as command
from pirf_ray.comparison.cells import Benchmark, key_of
from pirf_ray.comparison.chains import Chain, ChainMaker, Extent, count_jobs
from pirf_ray.comparison.jobs import Done, Job, run_job
from pirf_ray.comparison.plan import Plan, smoke
from pirf_ray.comparison.tuning import REFUSED, best_settings, next_settings, score
from pirf_ray.learning.learner import TrainingDiverged
from pirf_ray.methods import METHODS, Method, Problem, Sampler, Settings, Weights
from tiny_models import RESOLUTION, write_base

PLAN = replace(smoke(), resolution=RESOLUTION, samples=4, real=8, training=8, validation=4, train_steps=3, trials=3)
EXTENT = Extent(num_steps=(2, 3), repeated=("tilt",), repeated_steps=(3,), seeds=2)


class Tilt(Method):
    """Adds a learned number to the base model's samples: known figures for next to no work."""

    name, title, source, trains = "tilt", "tilt", "this test", True

    def defaults(self, problem: Problem) -> Settings:
        return {"shift": 0.5}

    def suggest(self, trial: optuna.Trial, problem: Problem) -> Settings:
        return {"shift": trial.suggest_float("shift", 0.0, 1.0)}

    def train(self, problem: Problem, settings: Settings, *, budget: float, seed: int) -> Weights:
        if settings["shift"] == 0.25:
            raise TrainingDiverged("too steep")
        return {"shift": torch.tensor([settings["shift"] + seed])}

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        return lambda process, noise: METHODS["base"].sampler(problem, {}, {})(process, noise) + weights["shift"]


@pytest.fixture
def tilt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "tilt", Tilt())


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return write_base(tmp_path / "base")


def benchmark_at(path: Path, plan: Plan = PLAN) -> Benchmark:
    return Benchmark.open(path / "benchmark", plan)


def drive(chain: Chain, stop_after: int | None = None) -> list[Job]:
    """What Ray does, here: run each job and send back its result; optionally die before a job's result is sent."""
    jobs: list[Job] = []
    result: Done | None = None
    while True:
        try:
            job = chain.send(result)
        except StopIteration:
            return jobs
        if stop_after is not None and len(jobs) == stop_after:
            return jobs
        jobs.append(job)
        result = run_job(job)


def cell(**changes: object) -> dict:
    return {"kind": "train", "env": "Burgers-v0", "method": "base", "settings": {}, "seed": 0, **changes}


def test_cells_come_back_and_a_half_written_line_is_dropped(tmp_path: Path) -> None:
    first = benchmark_at(tmp_path)
    with first.locked():
        first.add(cell(seed=0))
        first.add(cell(seed=1, value=math.inf))
    with first.path.open("a") as file:
        file.write('{"kind": "train", "env": "Bur')
    second = benchmark_at(tmp_path)
    with second.locked():
        assert [c["seed"] for c in second.cells()] == [0, 1]
        assert second.get("train", "Burgers-v0", "base", 1)["value"] == math.inf
        second.add(cell(seed=2))
    lines = second.path.read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1, 2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    benchmark = benchmark_at(tmp_path)
    benchmark.path.write_text(json.dumps(cell()) + "\n" + '{"kind": "cake"}\n')
    (benchmark.root / "plan.json").write_text(json.dumps(PLAN.to_json()))
    with pytest.raises(ConfigError, match=r"cells\.jsonl, line 2: not a cell"), benchmark.locked():
        pass


def test_one_process_and_one_plan(tmp_path: Path) -> None:
    benchmark = benchmark_at(tmp_path)
    with benchmark.locked():
        with pytest.raises(DirectoryTakenError, match="another process"), benchmark_at(tmp_path).locked():
            pass
        with pytest.raises(ConfigError, match="--trials 3 there, 4 asked"):
            benchmark_at(tmp_path, replace(PLAN, trials=4))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(DirectoryTakenError, match="something else"):
        Benchmark.open(tmp_path / "other", PLAN)


@pytest.mark.parametrize(("field", "value"), [("samples", 1), ("trials", 0), ("budget", 0.0)])
def test_a_plan_that_cannot_work_names_its_flag(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"--{field} must be"):
        replace(PLAN, **{field: value})


def test_score_prefers_low_residuals_inside_the_fidelity_limit() -> None:
    figures = {"residual": 0.01, "energy_ratio": 1.0, "below_floor": False}
    assert score(figures) == pytest.approx(-2)  # log10(.01)
    assert score({**figures, "energy_ratio": 1.04}) == pytest.approx(-2)
    assert score({**figures, "energy_ratio": 1.15, "residual": 1e-4}) == pytest.approx(-4 + 20 * 0.10)
    for broken in ({"below_floor": True}, {"residual": math.nan}, {"energy_ratio": math.inf}):
        assert score({**figures, **broken}) == REFUSED


def test_trials_begin_with_the_defaults_and_are_the_same_after_a_stop(base: Path) -> None:
    problem = _problem(base)
    method, trials = Tilt(), []
    for number in range(4):
        settings = next_settings(method, problem, trials)
        assert settings == next_settings(method, problem, json.loads(json.dumps(trials)))
        trials.append({"settings": settings, "score": abs(settings["shift"] - 0.3), "trial": number})
    assert trials[0]["settings"] == {"shift": 0.5}
    assert len({t["settings"]["shift"] for t in trials}) == 4
    assert best_settings(trials) == min(trials, key=lambda t: t["score"])["settings"]
    assert best_settings([]) == {}


def _problem(base: Path) -> Problem:
    from pirf_ray.diffusion import checkpoints

    info, denoiser = checkpoints.load_denoiser(base)
    return Problem(info=info, base=denoiser, num_steps=3)


@pytest.mark.usefixtures("tilt")
def test_a_chain_tunes_trains_and_evaluates(tmp_path: Path, base: Path) -> None:
    benchmark = benchmark_at(tmp_path)
    maker = ChainMaker(benchmark, EXTENT, ["base", "tilt"])
    with benchmark.locked():
        assert count_jobs(maker, [("Burgers-v0", "tilt")], ["tilt"]) == 7
        jobs = drive(maker.chain("Burgers-v0", "tilt", base))
        assert [job.kind for job in jobs] == ["tune"] * 3 + ["train", "evaluate"] * 2
        assert [job.num_steps for job in jobs if job.kind == "evaluate"] == [(2, 3), (3,)]
        assert count_jobs(maker, [("Burgers-v0", "tilt")], ["tilt"]) == 0
        assert drive(maker.chain("Burgers-v0", "tilt", base)) == []
        best = best_settings(benchmark.trials("Burgers-v0", "tilt"))
        evaluated = benchmark.get("evaluate", "Burgers-v0", "tilt", 3, 1)
        assert evaluated["settings"] == best
        assert evaluated["nfe"] == evaluated["cost"]["network_forwards"] == 5
        assert benchmark.load_weights("Burgers-v0", "tilt", 1)["shift"].item() == pytest.approx(best["shift"] + 1)
        assert set(benchmark.samples("Burgers-v0", ["tilt"])) == {("Burgers-v0", "tilt"), ("Burgers-v0", "data")}


@pytest.mark.usefixtures("tilt")
@pytest.mark.parametrize("stop_after", [1, 3, 4, 5])
def test_a_stopped_chain_goes_on_and_ends_with_the_same_cells(tmp_path: Path, base: Path, stop_after: int) -> None:
    def cells(root: Path, *stops: int | None) -> list[dict]:
        for stop in stops:
            benchmark = benchmark_at(root)
            with benchmark.locked():
                drive(ChainMaker(benchmark, EXTENT, ["tilt"]).chain("Burgers-v0", "tilt", base), stop)
        return [{k: v for k, v in c.items() if k not in ("cost", "sampling")} for c in benchmark.cells()]

    assert cells(tmp_path / "stopped", stop_after, None) == cells(tmp_path / "whole", None)


@pytest.mark.usefixtures("tilt")
def test_lost_weights_are_trained_again(tmp_path: Path, base: Path) -> None:
    benchmark = benchmark_at(tmp_path)
    with benchmark.locked():
        drive(ChainMaker(benchmark, EXTENT, ["tilt"]).chain("Burgers-v0", "tilt", base))
        (benchmark.root / "weights/Burgers-v0/tilt/0.safetensors").unlink()
        more = replace(EXTENT, num_steps=(2, 3, 4))
        jobs = drive(ChainMaker(benchmark, more, ["tilt"]).chain("Burgers-v0", "tilt", base))
    assert [job.kind for job in jobs] == ["train", "evaluate"]
    assert jobs[1].num_steps == (4,)


@pytest.mark.usefixtures("tilt")
def test_a_training_that_diverges_is_a_result(base: Path) -> None:
    job = Job(kind="tune", env="Burgers-v0", method="tilt", base=base, plan=PLAN, settings={"shift": 0.25})
    (failed,) = run_job(job).cells
    assert failed["failed"] == "too steep" and failed["score"] == REFUSED


def test_followers_share_the_samples_and_pay_for_them(tmp_path: Path, base: Path) -> None:
    job = Job(kind="evaluate", env="Burgers-v0", method="base", base=base, plan=PLAN, settings={}, num_steps=(3,))
    alone = run_job(job)
    both = run_job(replace(job, followers=("base-corrected",)))
    base_cell, corrected = both.cells
    assert {k: v for k, v in base_cell.items() if k != "cost"} == {k: v for k, v in alone.cells[0].items() if k != "cost"}
    assert corrected["method"] == "base-corrected"
    assert corrected["cost"]["network_forwards"] == 5
    assert corrected["cost"]["residual_gradients"] == 20 and base_cell["cost"]["residual_gradients"] == 0
    key = "residual/consistent/mean"
    assert corrected["figures"][key] < base_cell["figures"][key]
    assert base_cell["data"][key] == corrected["data"][key] > 0
    assert set(both.shown) == {"base", "base-corrected", "data"}
    keys = {key_of(c) for c in both.cells}
    assert keys == {("evaluate", "Burgers-v0", m, 3, 0) for m in ("base", "base-corrected")}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--methods", "wishful"], "--methods: unknown method 'wishful'; known: base"),
        (["--env", "Navier-v0"], "--env: unknown env 'Navier-v0'; known: Burgers-v0"),
        (["--preset", "huge"], "--preset: unknown preset 'huge'"),
        (["--num-steps", "1"], "--num-steps must be at least 2"),
        (["--seeds", "0"], "--seeds must be at least 1"),
        (["--resolution", "64"], "no base model ships at 64x64"),
        (["--samples", "1"], "--samples must be at least 2"),
        (["--job-cpus", "512", "--methods", "base"], "no job fits"),
    ],
)
def test_wrong_flags_are_named_before_anything_starts(tmp_path: Path, flags: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command.main(["--out", str(tmp_path / "out"), *flags])


def test_the_base_and_what_is_followed_are_always_there() -> None:
    _, methods = command.check(command.Arguments(env=("Burgers-v0",), methods=("pirf-ray",)))
    assert methods == ["base", "pirf-ray-uncorrected", "pirf-ray"]
