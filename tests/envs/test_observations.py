"""Observations at points: their operator, likelihood and reward; simulated ones; and the likelihood as a black box."""

import json
import pickle
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from envs.common.files import FileFormatError
from envs.numerics import seeding
from envs.observations import ObservationReward, PointObservations, simulate_observations
from envs.pdes import make_pde
from envs.rewards import Checked, CommandReward, RewardError
from places import ROOT

PDE = make_pde("Poisson-v0", 8)


def observations(**changes: Any) -> PointObservations:
    """Of f at row 1, column 2, and of phi at row 3, column 4."""
    defaults = {
        "pde": PDE,
        "points": torch.tensor([[0, 1, 2], [1, 3, 4]]),
        "values": torch.tensor([1.0, 2.0], dtype=torch.float64),
        "std": torch.tensor([0.5, 0.1], dtype=torch.float64),
    }
    return PointObservations(**{**defaults, **changes})


def fields(batch: int = 2) -> torch.Tensor:
    made = torch.zeros(batch, *PDE.shape, dtype=torch.float64)
    made[:, 0, 1, 2], made[:, 1, 3, 4] = 1.5, 1.9
    made[1:] += 0.1
    return made


def test_the_operator_picks_the_points() -> None:
    assert observations().H(fields()).tolist() == [[1.5, 1.9], [1.6, 2.0]]
    with pytest.raises(ValueError, match=r"Poisson-v0 expects fields \(b, 2, 8, 8\), got \(1, 1, 8, 8\)"):
        observations().H(torch.zeros(1, 1, 8, 8))


def test_the_likelihood_by_hand() -> None:
    """((1 - 1.5)/.5)^2 + ((2 - 1.9)/.1)^2 = 2 and (.6/.5)^2 + 0 = 1.44; the misfit is half of that for two points."""
    output = ObservationReward(observations())(fields())
    torch.testing.assert_close(output.reward, torch.tensor([-1.0, -0.72], dtype=torch.float64))
    torch.testing.assert_close(output.parts["misfit"], torch.tensor([1.0, 0.72], dtype=torch.float64))
    assert torch.equal(observations().log_likelihood(fields()), output.reward)


def test_the_likelihood_is_that_of_independent_normal_values() -> None:
    """Differences of log-likelihoods, since the constant is dropped."""
    seen, x = observations(), fields() + seeding.normal(0, "x", range(2), PDE.shape)
    law = torch.distributions.Normal(seen.H(x), seen.std)
    exact = law.log_prob(seen.values).sum(1)
    torch.testing.assert_close(seen.log_likelihood(x).diff(), exact.diff())


def test_the_reward_has_its_gradient() -> None:
    """d/dx = (y - x) / s^2 at the points, 0 elsewhere; and gradcheck."""
    reward, x = Checked(ObservationReward(observations()), "observations"), fields().requires_grad_()
    assert (reward.differentiable, reward.scope) == (True, "sample")
    (gradient,) = torch.autograd.grad(reward(x).reward.sum(), x)
    expected = torch.zeros_like(gradient)
    expected[:, 0, 1, 2] = (1 - x.detach()[:, 0, 1, 2]) / 0.25
    expected[:, 1, 3, 4] = (2 - x.detach()[:, 1, 3, 4]) / 0.01
    torch.testing.assert_close(gradient, expected)
    assert torch.autograd.gradcheck(lambda f: reward(f).reward, x)


def test_float32_fields_have_float32_rewards_accurate_to_their_rounding() -> None:
    """Deviations are taken in float64: -|y - x|^2/(2 s^2) of y = x + 1e-4, s = 1e-4 would lose 3 digits in float32."""
    close = observations(values=torch.tensor([1.5001, 1.9], dtype=torch.float64), std=torch.full((2,), 1e-4, dtype=torch.float64))
    rounded = fields().float()
    reward = close.log_likelihood(rounded)
    assert reward.dtype == torch.float32
    torch.testing.assert_close(reward, close.log_likelihood(rounded.double()).float(), rtol=1e-7, atol=0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"points": torch.zeros(2, 2, dtype=torch.int64)}, r"points must be integers \(m, 3\), got torch.int64 \(2, 2\)"),
        ({"points": torch.zeros(2, 3)}, r"points must be integers \(m, 3\), got torch.float32"),
        ({"points": torch.tensor([[0, 0, 0], [0, 8, 1]])}, r"inside the fields \(2, 8, 8\) of Poisson-v0, got .*'row': 8"),
        ({"points": torch.tensor([[-1, 0, 0], [0, 0, 1]])}, r"got {'channel': -1, 'row': 0, 'column': 0}"),
        ({"values": torch.zeros(3)}, r"values must have the shape \(2,\) of the points, got \(3,\)"),
        ({"values": torch.tensor([0.0, torch.nan])}, "values must be finite, got nan"),
        ({"std": torch.tensor([0.1, 0.0])}, "std must be positive, got 0.0"),
    ],
)
def test_bad_observations_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        observations(**changes)


def test_observations_travel_through_a_file_without_loss(tmp_path: Path) -> None:
    made, _ = simulate_observations(make_pde("Kolmogorov-v0", 16, reynolds=40), points=9, noise=0.1, seed=3)
    made.save(tmp_path / "seen.json")
    read = PointObservations.load(tmp_path / "seen.json")
    assert read.pde == made.pde and read.pde.parameters["reynolds"] == 40
    for name in ("points", "values", "std"):
        assert torch.equal(getattr(read, name), getattr(made, name))
        assert torch.equal(getattr(pickle.loads(pickle.dumps(made)), name), getattr(made, name))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data.pop("std"), "seen.json: no entry 'std'"),
        (lambda data: data["pde"].update(env_id="Heat-v0"), "seen.json: unknown env 'Heat-v0'; known: "),
        (lambda data: data["channel"].append("wind"), "seen.json: unknown channel 'wind' of Poisson-v0; known: f, phi"),
        (lambda data: data["row"].append(1), "seen.json: expected sequence of length 2"),
        (lambda data: data.update(row=[1, 9]), "seen.json: points must be inside the fields"),
        (lambda data: data.update(value=["a", "b"]), "seen.json: .*'str'"),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, damage: Any, message: str) -> None:
    path = tmp_path / "seen.json"
    observations().save(path)
    data = json.loads(path.read_text())
    damage(data)
    path.write_text(json.dumps(data))
    with pytest.raises(FileFormatError, match=message):
        PointObservations.load(path)


def test_simulated_observations_are_the_truth_and_its_noise() -> None:
    """All 128 points with 10 % noise. The misfit of the truth is chi-square / 128, std sqrt(2/128) = .125: within 4 of it."""
    seen, truth = simulate_observations(PDE, points=128, noise=0.1, seed=0)
    assert truth.shape == (1, *PDE.shape) and len(seen) == 128
    assert len({tuple(point) for point in seen.points.tolist()}) == 128
    channel_std = truth[0].flatten(1).std(1)
    torch.testing.assert_close(seen.std, 0.1 * channel_std[seen.points[:, 0]])
    assert ObservationReward(seen)(truth).parts["misfit"].item() == pytest.approx(1.0, abs=0.5)
    assert ObservationReward(seen)(0 * truth).parts["misfit"].item() > 10


def test_simulated_observations_are_functions_of_the_seed() -> None:
    one, _ = simulate_observations(PDE, points=6, noise=0.1, seed=1, channel="phi")
    same, _ = simulate_observations(PDE, points=6, noise=0.1, seed=1, channel="phi")
    other, _ = simulate_observations(PDE, points=6, noise=0.1, seed=2, channel="phi")
    assert torch.equal(one.values, same.values) and torch.equal(one.points, same.points)
    assert not torch.equal(one.points, other.points)
    assert one.points[:, 0].tolist() == [1] * 6


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"channel": "wind"}, "unknown channel 'wind' of Poisson-v0; known: f, phi"),
        ({"noise": 0.0}, "noise must be positive, got 0.0"),
        ({"points": 0}, r"points must be in \[1, 128\], got 0"),
        ({"points": 65, "channel": "f"}, r"points must be in \[1, 64\], got 65"),
    ],
)
def test_simulations_that_cannot_be_are_named(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simulate_observations(PDE, **{"points": 4, "noise": 0.1, "seed": 0, **wrong})


@pytest.fixture
def black_box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of 31 observations of Poisson 32^2, in a directory from which the package is found."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    seen, _ = simulate_observations(make_pde("Poisson-v0", 32), points=31, noise=0.05, seed=0)
    seen.save(tmp_path / "seen.json")
    return tmp_path / "seen.json"


def test_the_black_box_has_the_numbers_of_this_process(black_box: Path) -> None:
    """Fields travel as float32, answers as repr of float32 numbers, and both sides sum in float64: equal to one rounding."""
    seen = PointObservations.load(black_box)
    x = (seen.pde.solve(0, "test", range(16)) * 1.1).float().requires_grad_()
    reward = CommandReward([sys.executable, "-m", "envs.observations", str(black_box)], seen.pde, restarts=0)
    output = reward(x)
    assert not output.reward.requires_grad
    torch.testing.assert_close(output.reward, ObservationReward(seen)(x.detach()).reward, rtol=2.0**-22, atol=0)
    reward.close()


def test_a_black_box_without_its_file_says_so(black_box: Path) -> None:
    gone = CommandReward([sys.executable, "-m", "envs.observations", str(black_box) + "x"], restarts=0)
    with pytest.raises(RewardError, match="exit code 1 after 0 of 2 lines.*\n.*error: .*seen.jsonx: no such file"):
        gone(torch.zeros(2, 2, 32, 32))
