"""Pretraining: what it begins with, precision, compilation, dropout, several workers; whole trainings over Ray."""

import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import gymnasium
import pytest
import torch
from rich.console import Console

from commands import refuse
from envs.common import files
from envs.common.checks import ConfigError
from envs.data.datasets import FieldFile
from envs.pdes import REGISTRY, Burgers, make_pde, register
from pirf_ray import pretrain
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import CheckpointError, load_weights
from pirf_ray.pretraining.loop import Lines, Log, TrainingRecord, begin, run_updates
from pirf_ray.pretraining.trainer import Batches, Pretrainer, PretrainSettings
from tiny_models import tiny_network
from tiny_pretraining import CPU, PDE8, SETTINGS, SMOKE, same

pytestmark = pytest.mark.usefixtures("short_cards")


def trainer(data: FieldFile, *, compiled: bool = False, network: dict | None = None, **changes: object) -> Pretrainer:
    settings = replace(SETTINGS, network=tiny_network(**(network or {})), **changes)
    return Pretrainer(settings, PDE8, data, CPU, compiled=compiled)


def steps(run: Pretrainer, number: int) -> dict[str, torch.Tensor]:
    """The weights after some updates."""
    for _ in range(number):
        run.step()
    return {name: tensor.clone() for name, tensor in run.denoiser.network.state_dict().items()}


# --- what it begins with ---


@pytest.fixture(scope="module")
def other(data: FieldFile, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of another training of the same architecture."""
    run, path = trainer(data, seed=5), tmp_path_factory.mktemp("other") / "checkpoint"
    steps(run, 3)
    run.save(path)
    return path


def test_it_begins_with_the_averaged_weights_of_another_model(data: FieldFile, other: Path, tmp_path: Path) -> None:
    run = trainer(data)
    run.start_from(other)
    start = load_weights(other, "ema")
    assert same(run.denoiser.network.state_dict(), start)
    assert same(run.ema.tensors, start)
    assert (run.update_index, run.ema.updates) == (0, 0)
    run.step()
    assert not same(run.denoiser.network.state_dict(), start)
    run.save(tmp_path / "c")
    said = {"env_id": "Burgers-v0", "images": 24, "weights": checkpoints.fingerprint(start)}
    assert checkpoints.load_meta(tmp_path / "c")[1]["init"] == said == run.meta()["init"]


def test_a_model_of_another_architecture_is_refused_by_flag(data: FieldFile, other: Path) -> None:
    run = trainer(data, network={"num_blocks": 2})
    with pytest.raises(CheckpointError, match=r"--init .*num_blocks=1.*expected .*num_blocks=2"):
        run.start_from(other)


def test_a_resumed_training_keeps_what_it_began_with(data: FieldFile, other: Path, tmp_path: Path) -> None:
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
    with pytest.raises(CheckpointError, match="began with random weights, not with --init"):
        begin(stranger, tmp_path / "plain", other)


def test_the_command_and_its_card_say_what_a_model_began_with(capsys, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    pretrain.main([*SMOKE, "--out", str(first)])
    data = ["--data", str(first / "data.h5")]
    begun = ["--init", str(first / "model"), *data]
    pretrain.main([*SMOKE, "--out", str(second), *begun])
    card = (second / "model" / "CARD.md").read_text()
    assert re.search(r"- Began with the Burgers-v0 model `\w+`, which had seen 96 images", card)
    assert "- Images shown in all: 192" in card
    third = tmp_path / "third"
    pretrain.main([*SMOKE, "--out", str(third), "--init", str(second / "model"), *data])
    card_of_third = (third / "model" / "CARD.md").read_text()
    assert re.search(r"- That one began with the Burgers-v0 model `\w+`, which had seen 96 images", card_of_third)
    assert "- Images shown in all: 288" in card_of_third
    assert "--images 96 --warmup-images 16 --data FILE.h5 --init MODEL --out DIR`" in card
    assert "num_blocks" in refuse(pretrain.main, [*SMOKE, "--out", str(tmp_path / "x"), *begun, "--num-blocks", "2"], capsys)
    gone = ["--init", str(tmp_path / "gone"), *data]
    assert "no such checkpoint" in refuse(pretrain.main, [*SMOKE, "--out", str(tmp_path / "y"), *gone], capsys)
    assert not (tmp_path / "y").exists()


@pytest.fixture
def viscous() -> Iterator[str]:
    """The id of a PDE with a parameter."""

    @register
    class Viscous(Burgers):
        env_id = "Viscous-v0"
        default_parameters = {"strength": 1.0}  # noqa: RUF012

        def solve(self, seed, stream, sample_ids):
            return self.parameters["strength"] * super().solve(seed, stream, sample_ids)

    yield Viscous.env_id
    del REGISTRY._parts[Viscous.env_id], gymnasium.registry[Viscous.env_id]


def test_parameters_of_the_pde_reach_data_model_and_card(viscous: str, capsys, tmp_path: Path) -> None:
    flags = ["--env", viscous, *SMOKE, "--parameters", "strength", "0.5"]
    pretrain.main([*flags, "--out", str(tmp_path / "out")])
    info, _ = checkpoints.load_meta(tmp_path / "out" / "model")
    assert info.parameters == {"strength": 0.5}
    assert info.pde() == make_pde(viscous, 8, strength=0.5)
    card = (tmp_path / "out" / "model" / "CARD.md").read_text()
    assert "strength = 0.5" in card
    assert "--parameters strength 0.5" in card
    half = info.sigma_data
    pretrain.main(["--env", viscous, *SMOKE, "--out", str(tmp_path / "full")])
    assert checkpoints.load_meta(tmp_path / "full" / "model")[0].sigma_data == pytest.approx(2 * half, rel=1e-3)
    resumed = ["--env", viscous, *SMOKE, "--out", str(tmp_path / "out"), "--resume"]
    assert "strength" in refuse(pretrain.main, resumed, capsys)  # the file's parameters are not the default ones
    unknown = ["--env", viscous, *SMOKE, "--parameters", "mass", "2", "--out", str(tmp_path / "x")]
    assert "unknown parameter 'mass' of Viscous-v0; known: ['strength']" in refuse(pretrain.main, unknown, capsys)


# --- batches, dropout ---


def test_batches_prepared_in_threads_are_those_made_one_by_one(data: FieldFile) -> None:
    plain, threaded = Batches(SETTINGS, PDE8, data), Batches(SETTINGS, PDE8, data, prepared=3)
    for update in (0, 1, 2, 9, 10, 4):  # onwards, and as a resumed training jumps
        for ours, theirs in zip(threaded[update], plain[update], strict=True):
            assert torch.equal(ours, theirs)


def test_dropout_is_a_function_of_the_seed_and_the_update(data: FieldFile, tmp_path: Path) -> None:
    dropout = {"dropout": 0.3}
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    whole = steps(trainer(data, network=dropout), 4)
    assert torch.equal(torch.rand(1), expected)  # the global generator is left as it was
    first, second = trainer(data, network=dropout), trainer(data, network=dropout)
    steps(first, 2)
    first.save(tmp_path / "c")
    torch.manual_seed(99)
    second.load(tmp_path / "c")
    assert same(steps(second, 2), whole)
    assert not same(steps(trainer(data), 4), whole)  # there was dropout


# --- precision and compilation ---


def test_bf16_is_the_networks_alone_and_close_to_float32(data: FieldFile) -> None:
    full, half = trainer(data), trainer(data, precision="bf16")
    assert not same(steps(half, 5), steps(full, 5))
    assert half.mean_loss == pytest.approx(full.mean_loss, rel=2e-2)
    state = [*half.denoiser.parameters(), *half.ema.tensors.values(), *(p.grad for p in half.denoiser.parameters())]
    assert {tensor.dtype for tensor in state} == {torch.float32}
    while not half.finished:
        assert math.isfinite(half.step())
    assert half.mean_loss < 0.95


def test_precision_is_settled_by_the_device() -> None:
    auto = PretrainSettings()
    assert [auto.on(kind).precision for kind in ("cpu", "cuda")] == ["float32", "tf32"]
    assert [replace(auto, precision="bf16").on(kind).precision for kind in ("cpu", "cuda")] == ["bf16", "bf16"]
    with pytest.raises(ConfigError, match="--precision tf32 needs an NVIDIA GPU"):
        replace(auto, precision="tf32").on("cpu")


def test_precision_is_among_the_settings_that_a_resumed_training_keeps(data: FieldFile, tmp_path: Path) -> None:
    path = tmp_path / "c"
    trainer(data).save(path)
    assert files.read_json(path / "config.json")["precision"] == "float32"
    with pytest.raises(CheckpointError, match="other settings: precision"):
        trainer(data, precision="bf16").load(path)
    old = files.read_json(path / "config.json")
    del old["precision"]  # as written before there was one
    files.write_json(path / "config.json", old)
    trainer(data).load(path)


def test_compiling_the_network_changes_no_tensors_name_and_little_of_the_result(
    data: FieldFile, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled: list[object] = []
    backend = partial(torch.compile, backend=lambda graph, _: compiled.append(graph) or graph.forward)  # takes no minute
    monkeypatch.setattr(torch, "compile", backend)
    plain, run = trainer(data), trainer(data, compiled=True)
    expected = steps(plain, 2)
    torch.testing.assert_close(steps(run, 2), expected, rtol=1e-4, atol=1e-6)
    assert compiled
    run.save(tmp_path / "c")
    assert load_weights(tmp_path / "c", "model").keys() == load_weights(tmp_path / "c", "ema").keys() == expected.keys()
    plain.load(tmp_path / "c")  # either goes on from the other's checkpoint
    checkpoints.load_denoiser(tmp_path / "c")


# --- the loop's records ---


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


def test_the_loop_stops_where_it_is_asked_and_tells_how_far_it_is(data: FieldFile, tmp_path: Path) -> None:
    run, records = trainer(data), []
    run_updates(run, tmp_path / "c", asked_to_stop=lambda: run.update_index == 3, on_record=records.append)
    assert checkpoints.load_meta(tmp_path / "c")[1]["updates"] == 3
    again = trainer(data)
    again.load(tmp_path / "c")
    run_updates(again, tmp_path / "c", asked_to_stop=lambda: False, on_record=records.append)
    assert records[-1].update == 60 == checkpoints.load_meta(tmp_path / "c")[1]["updates"]
    with (tmp_path / "text").open("w") as file:
        lines = Lines(60, 8, Console(file=file, width=200))
        for update in (1, 2, 60):  # the second is too soon after the first
            lines.show(TrainingRecord(update=update, mean_loss=0.5, images_per_second=4.0))
    assert (tmp_path / "text").read_text().splitlines() == [
        "update 1/60 | loss 0.5000 | 4 images/s | 2.0 min left",
        "update 60/60 | loss 0.5000 | 4 images/s | 0.0 min left",
    ]
