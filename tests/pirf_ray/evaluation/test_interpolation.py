"""Weight interpolation: its ends, its best alpha, the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commands import refuse
from envs.common.checks import ConfigError
from pirf_ray import evaluate
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.evaluation.interpolation import best_alpha, between, network_weights, parse_alphas, sample_alphas
from pirf_ray.evaluation.models import EVALUATION_STREAM
from pirf_ray.metrics.drift import Drift
from pirf_ray.training.guard import GuardSettings
from pirf_ray.training.models import load_model
from tiny_models import start_run, tiny_config, tiny_tuning


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fine-tuned run of the tiny base model, with corrections."""
    config = tiny_config(corrections=2)
    made = start_run(tmp_path_factory.mktemp("interpolation"), config)
    tiny_tuning(config, made).fit()
    return made.paths.root


@pytest.mark.parametrize(
    ("text", "alphas"),
    [
        ("0:1:0.25", [0, 0.25, 0.5, 0.75, 1]),
        ("0:1:0.1", [i / 10 for i in range(11)]),
        ("0.5:1.5:0.5", [0, 0.5, 1, 1.5]),
        ("1:1:1", [0, 1]),
    ],
)
def test_alphas_hold_both_ends_and_the_base(text: str, alphas: list[float]) -> None:
    assert parse_alphas(text) == alphas


@pytest.mark.parametrize("text", ["", "0:1", "a:1:0.1", "0:1:0", "1:0:0.1", "0:inf:1", "0:1:-0.1", "0:1:0.001"])
def test_malformed_alphas_name_the_flag(text: str) -> None:
    with pytest.raises(ValueError, match="--interpolate"):
        parse_alphas(text)


def test_tensors_lie_on_the_line() -> None:
    base, tuned = {"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([3.0, 0.0])}
    assert torch.equal(between(base, tuned, 0.25)["w"], torch.tensor([1.5, 1.5]))
    assert torch.equal(between(base, tuned, 1.5)["w"], torch.tensor([4.0, -1.0]))
    assert between(base, tuned, 0.0) is base and between(base, tuned, 1.0) is tuned


@pytest.mark.parametrize("scope", ["tail", "all"])
def test_the_ends_are_the_base_and_the_run_bit_for_bit(run: Path, scope: str) -> None:
    """Without the finisher of either: only the weights differ."""
    model = load_model(run).model
    assert model.finisher is not None
    policy = model.policy
    policy.scope = scope
    before = {n: p.clone() for n, p in policy.tuned.network.named_parameters()}
    made = sample_alphas(model, [0.0, 0.5, 1.0], samples=4, seed=5, batch=3, progress=iter)
    plain = replace(model, finisher=None)
    expected = plain.sample(range(4), seed=5, stream=EVALUATION_STREAM, groups=("base", "tuned"), batch=3)
    assert torch.equal(made[0.0], expected["base"])
    assert torch.equal(made[1.0], expected["tuned"])
    assert not torch.equal(made[0.5], made[0.0]) and not torch.equal(made[0.5], made[1.0])
    assert all(torch.equal(p, before[n]) for n, p in policy.tuned.network.named_parameters())


@pytest.fixture(scope="module")
def low_rank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tuned low-rank factors."""
    config = tiny_config(parameters="low-rank", lora_rank=2, updates=2, scope="all", strategy="fresh", guard="off")
    made = start_run(tmp_path_factory.mktemp("low_rank"), config)
    tiny_tuning(config, made).fit()
    return made.paths.root


def test_low_rank_factors_lie_on_the_line_of_their_weights(low_rank: Path) -> None:
    """theta = W_0 + B A. Alpha 1 has the bits of the run, although its policy adds the factors in each evaluation."""
    model = load_model(low_rank).model
    made = sample_alphas(model, [0.0, 0.5, 1.0], samples=4, seed=5, batch=3, progress=iter)
    expected = model.sample(range(4), seed=5, stream=EVALUATION_STREAM, groups=("base", "tuned"), batch=3)
    assert torch.equal(made[0.0], expected["base"]) and torch.equal(made[1.0], expected["tuned"])
    names = list(model.policy.base.tensors())
    base, tuned = (network_weights(d, names) for d in (model.policy.base, model.policy.tuned))
    up, down = (model.policy.tuned.tensors()[f"map_layer0.parametrizations.weight.0.{name}"] for name in ("up", "down"))
    torch.testing.assert_close(tuned["map_layer0.weight"], base["map_layer0.weight"] + up @ down)
    assert torch.equal(tuned["map_layer0.bias"], base["map_layer0.bias"])


def test_a_denoiser_around_a_network_is_on_no_line(run: Path) -> None:
    class Around(AbstractDenoiser):
        def forward(self, x, sigma, condition=None):
            return x

    model = load_model(run).model
    model.policy.tuned = Around()
    with pytest.raises(ConfigError, match="--interpolate needs a run that tuned the weights of the network, got a Around"):
        sample_alphas(model, [0.0, 1.0], samples=2, seed=0, batch=2, progress=iter)


def test_the_best_alpha_is_the_lowest_residual_inside() -> None:
    residuals = {0.0: 1.0, 0.5: 0.3, 1.0: 0.1, 1.5: 0.01}
    assert best_alpha(residuals, {0.0: True, 0.5: True, 1.0: True, 1.5: False}) == 1.0
    assert best_alpha(residuals, dict.fromkeys(residuals, False)) is None
    assert best_alpha({0.0: 1.0, 1.0: float("inf")}, {0.0: True, 1.0: True}) == 0.0


@pytest.mark.parametrize(
    ("change", "inside"),
    [({}, True), ({"amplitude_ratio": 0.97}, False), ({"energy_ratio": 1.06}, False), ({"spectrum_rise": 0.2}, False)],
)
def test_a_drift_is_inside_only_if_every_limit_is_kept(change: dict, inside: bool) -> None:
    drift = Drift(**{"amplitude_ratio": 1.01, "energy_ratio": 1.04, "spectrum_rise": 0.05, **change})
    assert drift.inside(GuardSettings()) == inside


def test_the_command_draws_and_names_the_best(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "frontier.json"
    flags = ["--checkpoint", str(run), "--samples", "4", "--real", "16", "--threads", "1"]
    evaluate.main([*flags, "--interpolate", "0:1:0.5", "--out", str(out)])
    printed = capsys.readouterr().out
    written = json.loads(out.read_text())
    assert [point["alpha"] for point in written["points"]] == [0.0, 0.5, 1.0]
    first, last = written["points"][0], written["points"][-1]
    assert first["drift"] == {"amplitude_ratio": 1.0, "energy_ratio": 1.0, "spectrum_rise": 0.0}
    assert last["metrics"]["residual/consistent/mean"] != first["metrics"]["residual/consistent/mean"]
    assert written["data"]["residual/consistent/over_floor"] == 1
    assert f"best inside the guard's limits: {written['best_alpha']:g}" in printed
    assert out.with_suffix(".png").stat().st_size > 10_000
    assert "never overwritten" in refuse(evaluate.main, [*flags, "--interpolate", "0:1:0.5", "--out", str(out)], capsys)


def test_a_base_model_has_nothing_to_interpolate(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--checkpoint", str(run / "base"), "--interpolate", "0:1:0.5", "--samples", "4", "--real", "16"]
    error = refuse(evaluate.main, flags, capsys)
    assert "--interpolate needs a fine-tuned run" in error and "is a base model" in error
