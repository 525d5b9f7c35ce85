"""The scaling study runs; its numbers are no test's business, since machines are noisy."""

import json
from pathlib import Path

import pytest
import torch

from commands import refuse
from pirf_ray.distributed.weights import WeightMessage, WeightMismatch
from pirf_ray.studies import scaling
from pirf_ray.studies.scaling import SleepingActor
from tiny_models import EXACT, RESOLUTION, tiny_config, write_base


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
        (["--actors", "0"], "--actors must be at least 1 each, got (0,)"),
        (["--chunks", "0"], "--chunks must be at least 1, got 0"),
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--warmup", "-1"], "--warmup must not be negative, got -1"),
        (["--chunk-seconds", "0"], "--chunk-seconds must be positive, got 0"),
        (["--learn-seconds", "0"], "--learn-seconds must be positive, got 0"),
        (["--staleness", "-1"], "staleness"),
        (["--out", __file__], "exists; results are never overwritten"),
    ],
)
def test_bad_flags_are_one_line_and_start_nothing(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refuse(scaling.main, flags, capsys)


def test_a_sleeping_actor_takes_real_weights_and_gives_prefixes_of_the_real_size(tmp_path: Path) -> None:
    config = tiny_config(**EXACT)
    base = write_base(tmp_path / "base")
    actor = SleepingActor(config.rollout_task({}), base, 1, "cpu", 0.0)
    weights = {name: torch.ones_like(p) for name, p in actor.worker.policies.tuned.tuned.network.named_parameters()}
    prefix = actor.make(3, 1, WeightMessage.pack(1, weights))
    assert prefix.x.shape == (config.rollout.chunk, 1, RESOLUTION, RESOLUTION) and prefix.x.dtype == torch.float32
    assert (prefix.sample_ids, prefix.step, prefix.policy_version) == ((6, 7), config.prefix_steps, 1)
    assert all((p == 1).all() for p in actor.worker.policies.tuned.tuned.parameters())
    with pytest.raises(WeightMismatch):
        actor.make(3, 2, WeightMessage.pack(1, weights))
