"""The loop of a pretraining: its start, its stop, its records and printed lines."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from envs.common.checks import ConfigError
from envs.data.datasets import FieldFile
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError
from pirf_ray.pretraining.loop import Lines, Log, TrainingRecord, Workers, begin, run_updates, train_here, whole_updates
from pirf_ray.pretraining.trainer import Pretrainer
from tiny_pretraining import CPU, PDE8, SETTINGS, same

SHORT = replace(SETTINGS, images=96)
"""Settings of 12 updates."""


def trainer(data: FieldFile, **changes: object) -> Pretrainer:
    return Pretrainer(replace(SHORT, **changes), PDE8, data, CPU)


def steps(run: Pretrainer, number: int) -> dict[str, torch.Tensor]:
    """Return the weights after so many more updates."""
    for _ in range(number):
        run.step()
    return {name: tensor.clone() for name, tensor in run.denoiser.network.state_dict().items()}


@pytest.fixture(scope="module")
def other(data: FieldFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a checkpoint of another training of the same architecture."""
    run, path = trainer(data, seed=5), tmp_path_factory.mktemp("other") / "checkpoint"
    steps(run, 3)
    run.save(path)
    return path


def test_a_resumed_training_keeps_its_start(data: FieldFile, other: Path, tmp_path: Path) -> None:
    whole, first, second, stranger = (trainer(data) for _ in range(4))
    for run in (whole, first):
        begin(run, tmp_path / "c", other)
    expected = steps(whole, 4)
    steps(first, 2)
    first.save(tmp_path / "c")
    begin(second, tmp_path / "c", None)
    assert second.init == whole.init is not None
    assert same(steps(second, 2), expected)
    trainer(data).save(tmp_path / "plain")
    with pytest.raises(CheckpointError, match="started from random weights, not from --init"):
        begin(stranger, tmp_path / "plain", other)


def test_the_log_drops_what_will_be_made_again_and_half_written_lines(tmp_path: Path) -> None:
    log = Log(tmp_path / "new")
    log.rewind(0)
    assert log.latest() is None
    records = [TrainingRecord(update=u, mean_loss=1.0 / u, images_per_second=8.0) for u in range(1, 200)]
    for record in records:
        log.append(record)
    log.fail(199, "loss of update 199 is nan")
    with log.journal.path.open("a") as file:
        file.write('{"update": 2')
    assert log.failure() == "loss of update 199 is nan" and log.latest() is None
    log.rewind(150)
    assert log.journal.records() == [record.to_json() for record in records[:150]]
    assert log.latest() == records[149] and log.failure() is None


def test_the_loop_stops_when_it_is_asked_and_records_how_far_it_is(data: FieldFile, tmp_path: Path) -> None:
    run, records = trainer(data), []
    run_updates(run, tmp_path / "c", asked_to_stop=lambda: run.update_index == 3, on_record=records.append)
    assert checkpoints.load_meta(tmp_path / "c")[1]["updates"] == 3
    again = trainer(data)
    again.load(tmp_path / "c")
    run_updates(again, tmp_path / "c", asked_to_stop=lambda: False, on_record=records.append)
    assert records[-1].update == 12 == checkpoints.load_meta(tmp_path / "c")[1]["updates"]
    with (tmp_path / "text").open("w") as file:
        lines = Lines(60, 8, Console(file=file, width=200))
        for update in (1, 2, 60):  # the second is too soon after the first
            lines.show(TrainingRecord(update=update, mean_loss=0.5, images_per_second=4.0))
    assert (tmp_path / "text").read_text().splitlines() == [
        "update 1/60 | loss 0.5000 | 4 images/s | 2.0 min left",
        "update 60/60 | loss 0.5000 | 4 images/s | 0.0 min left",
    ]


def lines() -> Lines:
    return Lines(12, 8, Console(quiet=True))


def test_ctrl_c_lets_the_update_end_and_keeps_it(data: FieldFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives inside update 3. This update is finished and saved, then the training ends."""
    run = trainer(data)
    whole = run.step

    def interrupted() -> float:
        if run.update_index == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return whole()

    monkeypatch.setattr(run, "step", interrupted)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train_here(run, tmp_path / "c", lines())
    assert signal.getsignal(signal.SIGINT) is before
    assert checkpoints.load_meta(tmp_path / "c")[1]["updates"] == 3
    resumed = trainer(data)
    begin(resumed, tmp_path / "c", None)
    train_here(resumed, tmp_path / "c", lines())
    assert same(resumed.denoiser.network.state_dict(), steps(trainer(data), 12))


def test_a_second_ctrl_c_ends_at_once() -> None:
    with whole_updates() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.is_set()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_a_diverged_training_names_its_last_checkpoint(data: FieldFile, tmp_path: Path) -> None:
    run = trainer(data)
    next(run.denoiser.parameters()).data.fill_(torch.nan)
    with pytest.raises(ConfigError, match="loss of update 0 is nan; lower the learning rate; there is no checkpoint yet"):
        train_here(run, tmp_path / "c", lines())
    trainer(data).save(tmp_path / "c")
    with pytest.raises(ConfigError, match=f"the last checkpoint is {tmp_path / 'c'}"):
        train_here(run, tmp_path / "c", lines())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": -1}, "--workers must not be negative, got -1"),
        ({"worker_cpus": -0.5}, "--worker-cpus must not be negative, got -0.5"),
        ({"max_failures": -1}, "--max-failures must not be negative, got -1"),
        ({"worker_gpus": 2}, "--worker-gpus must be 0 or 1 .*got 2"),
    ],
)
def test_impossible_workers_are_refused(changes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Workers(**changes)
    assert [Workers(worker_cpus=cpus).threads for cpus in (0, 0.25, 1, 2.5)] == [1, 1, 1, 2]
