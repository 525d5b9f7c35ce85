"""The throughput study: what it compares, and that it measures; its numbers are no test's business."""

import io

import pytest
from rich.console import Console

from commands import refuse
from pirf_ray.studies import throughput
from pirf_ray.studies.throughput import Arguments, Throughput
from tiny_models import tiny_config, tiny_tuning


def test_sources_differ_only_in_how_prefixes_are_made() -> None:
    settings = throughput.settings(Arguments(actors=3))
    assert next(iter(settings)) == throughput.ONE_PROCESS and len(settings) == 5
    first = settings[throughput.ONE_PROCESS]
    assert settings["actors, exact (M=1, S=0)"] == first
    assert (first.rollout.reuse, first.rollout.staleness, first.policy.truncation, first.actor.actors) == (1, 0, 2, 3)
    assert settings["actors, overlapped (M=1, S=1)"] == first.with_settings(staleness=1)
    assert settings["actors, reused (M=4, S=7)"] == first.with_settings(reuse=4, staleness=7)
    pool = settings["actors, pool (scope tail)"]
    assert (pool.rollout.strategy, pool.policy.scope) == ("pool", "tail")
    assert pool.with_settings(scope="all", strategy="fresh") == first


def test_it_measures_updates_after_the_warm_up() -> None:
    tuning = tiny_tuning(tiny_config(guard="off"))
    measured = throughput.measure(tuning, updates=2, warmup=1)
    assert tuning.update == 3
    assert min(measured.wait, measured.learn, measured.sync) > 0
    seconds = measured.wait + measured.learn + measured.sync
    assert measured.samples_per_second == pytest.approx(tuning.config.optimizer.batch / seconds)


def test_the_table_compares_with_one_process() -> None:
    one = Throughput(wait=0.5, learn=0.25, sync=0.25, samples_per_second=16.0)
    stream = io.StringIO()
    two = Throughput(wait=0.0, learn=0.25, sync=0.25, samples_per_second=32.0)
    Console(file=stream, width=100).print(throughput.table({throughput.ONE_PROCESS: one, "actors": two}))
    rows = [line.replace("│", " ").split() for line in stream.getvalue().splitlines() if "│" in line]
    assert rows == [
        ["one", "process", "0.500", "0.250", "0.250", "16.00", "1.00"],
        ["actors", "0.000", "0.250", "0.250", "32.00", "2.00"],
    ]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--updates", "0"], "--updates must be at least 1, got 0"),
        (["--warmup", "-1"], "--warmup must not be negative, got -1"),
        (["--env", "Navier-v0"], "no base model for Navier-v0"),
    ],
)
def test_bad_flags_are_one_line(flags: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert message in refuse(throughput.main, flags, capsys)
