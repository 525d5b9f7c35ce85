"""The scaling benchmark runs; what it measures is no test's business, since machines are noisy."""

import json
from pathlib import Path

import pytest

from pirf_ray.cli.errors import run_command
from pirf_ray.studies import scaling


@pytest.mark.slow
def test_scaling_measures_against_the_ideal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By hand: 4 chunks of 0.1 s an update are 2.5 updates/s of one actor, 5 of two; 0.25 s of learning allow 4."""
    out = tmp_path / "scaling.json"
    times = ["--chunks", "4", "--chunk-seconds", "0.1", "--learn-seconds", "0.25", "--updates", "3", "--warmup", "1"]
    scaling.main(["--actors", "1", "2", *times, "--out", str(out)])
    one, two = json.loads(out.read_text())
    assert (one["actors"], two["actors"]) == (1, 2)
    assert (one["ideal"], two["ideal"]) == pytest.approx((2.5, 4.0))
    for found in (one, two):
        assert found["of_ideal"] == pytest.approx(found["updates_per_second"] / found["ideal"])
        assert 0 < found["of_ideal"] <= 1.2 and 0 <= found["waiting"] < 1
    assert "of ideal" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--actors", "0"], "--actors, --chunks and --updates must be at least 1"),
        (["--learn-seconds", "0"], "--learn-seconds must be positive"),
        (["--staleness", "-1"], "staleness"),
        (["--out", __file__], "exists; results are never overwritten"),
    ],
)
def test_bad_flags_are_one_line_and_start_nothing(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        run_command(lambda: scaling.main(flags))
    error = capsys.readouterr().err.strip()
    assert ending.value.code == 2 and len(error.splitlines()) == 1 and message in error
