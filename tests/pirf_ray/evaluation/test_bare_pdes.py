"""PDEs that leave parts out, from data to evaluation: one without a solver, one known by samples only. 8 x 8 fields.

Heat has an operator and no solver. Its data are made-up fields in a file. Clouds has stored samples and no operator.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

import pirf_ray
from bare_pdes import Heat, clouds
from commands import refuse
from envs.data import datasets
from envs.pdes import PDE, register
from envs.rewards import REWARDS, FunctionReward, Reward, reward
from pirf_ray import benchmark, evaluate, generate, pretrain, summary
from pirf_ray.evaluation.models import Evaluation, evaluate_run
from pirf_ray.evaluation.samples import read_samples
from pirf_ray.metrics.results import EvaluationResult
from pirf_ray.training.outcome import Outcome
from pirf_ray.training.runs import RunDirectory
from registered_pdes import registered
from registries import restored
from tiny_models import tiny_config
from tiny_pretraining import SMOKE

SIZES = ("--samples", "4", "--real", "6")
OUTCOME = Outcome(updates=2, finished=True, stopped_by_guard=False, kept_update=2, actors_lost=0)
PLAIN: dict[str, Any] = {"updates": 2, "corrections": 0, "learning_rate": 1e-2}
LEVEL = 5.0


@dataclass(frozen=True)
class Case:
    """What the tests of a PDE share."""

    pde: PDE
    base: Path
    """Base model, pretrained by the command."""
    data: Path | None
    """File of held-out fields, if the PDE has none."""
    run: RunDirectory
    """A finished run."""
    evaluation: Evaluation
    """Evaluation of the run as ``train`` makes it at its end."""

    @property
    def flags(self) -> list[str]:
        """Flags of ``evaluate`` for the run."""
        given = [] if self.data is None else ["--data", str(self.data)]
        return ["--checkpoint", str(self.run.paths.root), *SIZES, "--threads", "1", *given]


def write_fields(path: Path, pde: PDE, seed: int, stream: str) -> Path:
    """Write 40 smooth made-up fields of hundreds of kelvin."""

    def produce(ids: range) -> torch.Tensor:
        noise = torch.randn((40, *pde.shape), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return 300 + 50 * noise.cumsum(-1)[ids.start : ids.stop]

    datasets.write_fields(path, pde, produce, {"seed": seed, "stream": stream}, num_samples=40)
    return path


def evaluated(run: RunDirectory, data: Path | None = None, reward: Reward | None = None) -> Evaluation:
    return evaluate_run(run, OUTCOME, data=data, progress=iter, device="cpu", reward=reward)


@pytest.fixture(scope="module", autouse=True)
def forgotten() -> Iterator[None]:
    """Forget what the tests register. Cards are measured with two steps only."""
    with registered() as patch:
        restored(REWARDS, patch)
        patch.setattr("pirf_ray.evaluation.cards.CARD_STEPS", (2,))
        yield


@pytest.fixture(scope="module")
def heat(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A PDE without a solver: pretrained on a file, tuned by the plain physics reward without guard."""
    place = tmp_path_factory.mktemp("heat")
    pde = register(Heat)()
    train, test = (write_fields(place / f"{stream}.h5", pde, seed, stream) for seed, stream in enumerate(("train", "test")))
    pretrain.main(["--env", pde.env_id, *SMOKE, "--data", str(train), "--out", str(place / "base")])
    config = tiny_config(env=pde.env_id, reward_form="plain", guard="off", **PLAIN)
    run = RunDirectory.create(place / "run", config, place / "base" / "model")
    pirf_ray.fine_tune(pirf_ray.load(place / "base" / "model"), config=config, run=run)
    return Case(pde=pde, base=place / "base" / "model", data=test, run=run, evaluation=evaluated(run, test))


@pytest.fixture(scope="module")
def cloudy(tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A law known by samples: pretrained on stored samples, tuned by a user's reward with the guard."""
    place = tmp_path_factory.mktemp("clouds")
    pde = register(clouds(place))()

    @reward("near-level")
    def near_level(fields: torch.Tensor) -> torch.Tensor:
        """Minus the mean square distance of the depth from a level."""
        return -(fields[:, 0, 1:] - LEVEL).square().flatten(1).mean(1)

    pretrain.main(["--env", pde.env_id, *SMOKE, "--out", str(place / "base")])
    config = tiny_config(env=pde.env_id, reward="near-level", guard_every=1, **PLAIN)
    run = RunDirectory.create(place / "run", config, place / "base" / "model")
    pirf_ray.fine_tune(pirf_ray.load(place / "base" / "model"), config=config, run=run)
    return Case(pde=pde, base=place / "base" / "model", data=None, run=run, evaluation=evaluated(run))


@pytest.fixture(params=["heat", "cloudy"])
def case(request: pytest.FixtureRequest) -> Case:
    """Each of both."""
    made: Case = request.getfixturevalue(request.param)
    return made


def measured(case: Case, tmp_path: Path, *flags: str) -> EvaluationResult:
    """Return what ``evaluate`` writes. Its JSON has no nan and no null."""
    out = tmp_path / "result.json"
    evaluate.main([*case.flags, "--out", str(out), *flags])
    text = out.read_text()
    assert "NaN" not in text and "null" not in text
    return EvaluationResult.from_json(json.loads(text))


def test_a_pde_without_a_solver_is_evaluated_on_a_file(heat: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = measured(heat, tmp_path, "--metrics", "energy-distance")
    printed = capsys.readouterr().out
    assert "residual laplace (rewarded)" in printed and "cold" in printed
    assert not any(absent in printed for absent in ("re-solve", "trivial", "known marginal", "not rewarded", "mean reward"))
    assert (result.num_samples, result.num_real) == (4, 6)
    base, tuned = result["base"], result["tuned"]
    assert tuned.residuals["laplace"].mean != base.residuals["laplace"].mean > 0
    assert tuned.resolve is None and tuned.fidelity.marginal_energy_distance is None
    assert base.named == {"energy-distance": base.fidelity.energy_distance}


def test_the_plain_residual_falls(heat: Case, tmp_path: Path) -> None:
    """Two updates of a rate at which they are seen, from the same noise."""
    result = measured(heat, tmp_path)
    assert result["tuned"].residuals["laplace"].mean < result["base"].residuals["laplace"].mean


def test_a_law_of_samples_is_evaluated_by_the_users_reward(
    cloudy: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Real data are N(3, 2^2), so their mean reward is -(2^2 + 2^2).

    Its standard error over 4 fields of 56 points is sqrt(2 2^4 + 4 2^2 2^2) / sqrt(224) = .65; four of them are allowed.
    """
    result = measured(cloudy, tmp_path)
    printed = capsys.readouterr().out
    assert "mean reward" in printed and "residual" not in printed and "re-solve" not in printed
    assert result.operators == [] and result.rewarded_operator == ""
    base, tuned, data = (result[name].named["reward"] for name in ("base", "tuned", "data"))
    assert tuned > base
    assert data == pytest.approx(-8, abs=2.6)
    written = json.loads((tmp_path / "result.json").read_text())
    assert written["tuned"]["metric/reward"] == tuned


def test_a_run_is_evaluated_whole(case: Case) -> None:
    """result.json, samples.h5 and report.png. The stored samples have 10 held-out fields, fewer than the 20 of the settings."""
    result, paths = case.evaluation.result, case.run.paths
    assert (result.num_samples, result.num_real) == ((4, 16) if case.data else (2, 8))
    assert EvaluationResult.from_json(json.loads(paths.result.read_text())) == result
    assert ("reward" in result["tuned"].named) == (case.pde.env_id == "Clouds-v0")
    assert read_samples(paths.samples).keys() == {"base", "tuned", "data"}
    assert min(imread(paths.report).shape[:2]) > 600


def test_a_finished_run_stands_in_the_summary(case: Case, capsys: pytest.CaptureFixture[str]) -> None:
    summary.main([str(case.run.paths.root)])
    head, _, row = (line.split(" | ") for line in capsys.readouterr().out.splitlines()[-3:])
    cells = dict(zip(head, row, strict=True))
    assert cells["re-solve error (real data)"] == cells["unrewarded check (real data)"] == "-"
    if case.data:
        assert cells["`consistent` residual (floor)"].count("→") == 1 and cells["conditions"].startswith("cold ")
    else:
        assert cells["`consistent` residual (floor)"] == cells["ratio"] == "-"
        assert "→" in cells["mean reward (real data) |"]


def test_a_reward_from_python_is_reported_too(heat: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The settings of such a run name the physics reward. float32 means of 64 values."""
    monkeypatch.setattr("pirf_ray.evaluation.report.draw_report", lambda path, **_: None)
    own = FunctionReward(lambda fields: -fields.abs().flatten(1).mean(1), differentiable=True)
    evaluation = evaluated(heat.run, heat.data, own)
    for name, fields in evaluation.sets.items():
        assert evaluation.result[name].named["reward"] == pytest.approx(-fields.abs().mean().item(), rel=1e-4)


def test_samples_are_generated(case: Case, tmp_path: Path) -> None:
    flags = ["--checkpoint", str(case.run.paths.root), "--num-samples", "3", "--corrections", "0"]
    generate.main([*flags, "--out", str(tmp_path / "samples.h5")])
    fields = read_samples(tmp_path / "samples.h5")["tuned"]
    assert fields.shape == (3, *case.pde.shape)
    plain = ["--checkpoint", str(case.base), "--num-samples", "2", "--out", str(tmp_path / "base.h5")]
    generate.main(plain)
    assert read_samples(tmp_path / "base.h5")["base"].shape[0] == 2


def test_a_base_model_says_in_its_card_what_is_measured(heat: Case, cloudy: Case) -> None:
    """Without held-out fields nothing is. Stored samples are 10 held-out ones, of 48 that the preset asks for."""
    bare, measured = ((case.base / "CARD.md").read_text() for case in (heat, cloudy))
    assert "- Data: 40 samples, stream `train`, seed 0" in bare
    assert "Not measured, since there are no held-out fields" in bare and "| N |" not in bare
    assert "## Measured: 3 samples against 7 held-out fields" in measured
    assert "| N | NFE | amplitude ratio | energy distance | over real against real |" in measured
    assert "Real against real, in the same way: amplitude ratio" in measured


@pytest.mark.parametrize("flags", [[], ["--interpolate", "0:1:0.5"]], ids=["sets", "interpolate"])
def test_held_out_data_are_asked_for_before_anything_is_sampled(
    heat: Case, flags: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pirf_ray.diffusion.model.Model.sample", None)
    error = refuse(evaluate.main, [*replace(heat, data=None).flags, *flags], capsys)
    need = "the comparison with held-out fields needs one; give a file of them: --data FILE"
    assert error == f"error: Heat-v0 has no solver (solve): {need}"


def test_more_samples_than_are_stored_are_refused_by_their_flags(cloudy: Case, capsys: pytest.CaptureFixture[str]) -> None:
    error = refuse(evaluate.main, [*cloudy.flags, "--real", "7"], capsys)
    assert "Clouds-v0 has 10 stored test samples; --real and --samples need 11 together" in error


def test_interpolation_shows_what_there_is(heat: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "frontier.json"
    evaluate.main([*heat.flags, "--interpolate", "0:1:0.5", "--out", str(out)])
    printed = capsys.readouterr().out
    assert "laplace" in printed and "re-solve" not in printed
    assert "NaN" not in out.read_text() and out.with_suffix(".png").stat().st_size > 10_000
    assert [point["alpha"] for point in json.loads(out.read_text())["points"]] == [0.0, 0.5, 1.0]


def test_interpolation_needs_an_operator(cloudy: Case, capsys: pytest.CaptureFixture[str]) -> None:
    error = refuse(evaluate.main, [*cloudy.flags, "--interpolate", "0:1:0.5"], capsys)
    assert "Clouds-v0 has no residual operator (operators): --interpolate, which compares residuals, needs one" in error


def test_corrections_need_an_operator(cloudy: Case, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "samples.h5"
    flags = ["--checkpoint", str(cloudy.run.paths.root), "--corrections", "3", "--out", str(out)]
    assert "Clouds-v0 has no " in refuse(generate.main, flags, capsys)
    assert not out.exists()


@pytest.mark.parametrize(("name", "missing"), [("heat", "solver (solve)"), ("cloudy", "residual operator (operators)")])
def test_the_benchmark_refuses_a_pde_without_its_parts(
    name: str, missing: str, request: pytest.FixtureRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case: Case = request.getfixturevalue(name)
    flags = ["--env", case.pde.env_id, "--base", str(case.base), "--resolution", "8", "--out", str(tmp_path / "out")]
    error = refuse(benchmark.main, flags, capsys)
    assert f"{case.pde.env_id} has no {missing}: the benchmark needs one" in error
    assert not (tmp_path / "out").exists()
