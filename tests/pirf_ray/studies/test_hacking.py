"""The hacking study: an unguarded reward leaves the data, a guarded one does not; like is compared with like."""

import json
from pathlib import Path

import pytest

from commands import refuse
from pirf_ray.studies import hacking
from pirf_ray.zoo import find
from tiny_models import write_base

SHORT = {
    "updates": "4",
    "learning-rate": "0.3",
    "samples": "8",
    "guard-samples": "8",
    "num-steps": "5",
    "threads": "1",
}
"""Steps so large that the first leaves the limits."""
FLAGS = [part for name, value in SHORT.items() for part in (f"--{name}", value)]


def test_an_unguarded_reward_is_kept_to_the_end_and_a_guarded_one_inside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the tiny base model."""
    base = write_base(tmp_path / "base")
    monkeypatch.setattr(hacking, "RESOLUTION", 8)
    monkeypatch.setattr(hacking, "REAL", 32)
    monkeypatch.setattr(hacking.zoo, "find", lambda env, resolution: base)
    out = tmp_path / "out"
    hacking.main(["--out", str(out), *FLAGS])
    result = json.loads((out / "hacking.json").read_text())
    assert set(result) == {"env", "operator", "limits", "base", "unguarded", "guarded", "default", "data"}
    assert [h["update"] for h in result["unguarded"]["history"]] == [1, 2, 3, 4]
    assert not any(h["inside"] for h in result["unguarded"]["history"])
    outside = result["unguarded"]["drift"]
    assert outside["energy_ratio"] > 1.05 or abs(outside["amplitude_ratio"] - 1) > 0.02
    assert result["guarded"]["drift"]["amplitude_ratio"] == 1.0  # the base itself is what is left
    assert result["guarded"]["metrics"] == result["base"]["metrics"]
    assert len(result["guarded"]["history"]) < 4
    assert result["base"].keys() == {"metrics", "drift"} and result["data"].keys() == {"metrics"}
    assert result["data"]["metrics"]["residual/consistent/over_floor"] == 1
    assert (out / "hacking.png").stat().st_size > 30_000
    printed = capsys.readouterr()
    assert "unguarded" in printed.out and "unguarded: update 4" in printed.err
    assert "never overwritten" in refuse(hacking.main, ["--out", str(out)], capsys)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--samples", "1"], "--samples must be at least 2, got 1"),
        (["--guard-samples", "1"], "--guard-samples must be at least 2, got 1"),
        (["--learning-rate", "0"], "--learning-rate must be positive, got 0"),
        (["--env", "Navier-v0"], "--env: unknown env 'Navier-v0'"),
    ],
)
def test_bad_flags_are_one_line_and_make_nothing(
    tmp_path: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refuse(hacking.main, ["--out", str(tmp_path / "out"), *flags], capsys)
    assert not (tmp_path / "out").exists()


def test_the_study_compares_like_with_like() -> None:
    ways = hacking.configs(hacking.Arguments(out=Path("x")))
    assert tuple(ways) == hacking.WAYS
    assert ways["unguarded"].with_settings(guard="enforce") == ways["guarded"]
    assert {w.optimizer.updates for w in ways.values()} == {60}
    assert {(w.sampler, w.optimizer.learning_rate, w.parameters_settings.levels, w.guard.guard_every) for w in ways.values()} == {
        (ways["default"].sampler, 1e-4, 0, 5)
    }
    assert ways["default"].policy.scope == "tail" and ways["default"].guard.guard == "enforce"
    assert find("Burgers-v0", 32).is_dir()
