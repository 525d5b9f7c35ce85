"""Pretraining over several workers: the same training as in one process; who trains; whole trainings over Ray."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from commands import refuse
from envs.common.checks import ConfigError
from envs.data.datasets import FieldFile
from pirf_ray import pretrain
from pirf_ray.cli.pretraining import PretrainArguments, ray_workers
from pirf_ray.diffusion import checkpoints
from pirf_ray.learning.communicator import SingleProcess
from pirf_ray.pretraining.loop import Log, Workers
from pirf_ray.pretraining.trainer import Pretrainer
from places import ROOT
from processes import ray_processes, wait_for
from tiny_pretraining import CPU, PDE8, SETTINGS, SMOKE, same

pytestmark = pytest.mark.usefixtures("short_cards")


def rank(index: int, file: str, folder: str) -> None:
    from pirf_ray.distributed.communicator import TorchCommunicator

    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=index, world_size=2)
    run = Pretrainer(SETTINGS, PDE8, FieldFile(Path(file), PDE8), CPU, communicator=TorchCommunicator())
    torch.save(figures(run), f"{folder}/{index}.pt")
    dist.destroy_process_group()


def figures(run: Pretrainer) -> dict[str, dict[str, torch.Tensor]]:
    """Of a training's first updates: the first gradient, the weights in the end, the losses."""
    losses = [run.step()]
    gradient = {name: p.grad.clone() for name, p in run.denoiser.network.named_parameters()}
    losses += [run.step() for _ in range(4)]
    # The bias of attention's keys changes nothing (softmax): its gradient is rounding, which Adam blows up.
    weights = {name: t.clone() for name, t in run.denoiser.network.state_dict().items() if not name.endswith("qkv.bias")}
    return {"gradient": gradient, "weights": weights, "losses": {"losses": torch.tensor(losses)}}


def test_two_workers_train_as_one_does(data: FieldFile, tmp_path: Path) -> None:
    mp.spawn(rank, args=(str(data.path), str(tmp_path)), nprocs=2)
    ranks = [torch.load(tmp_path / f"{index}.pt", weights_only=True) for index in range(2)]
    expected = figures(Pretrainer(SETTINGS, PDE8, data, CPU, communicator=SingleProcess()))
    for group in expected:
        assert same(ranks[0][group], ranks[1][group]), group
        torch.testing.assert_close(ranks[0][group], expected[group], rtol=1e-4, atol=2e-6)


def test_plain_pretraining_imports_no_ray() -> None:
    code = "import sys, pirf_ray.pretrain; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def arguments(tmp_path: Path, *, device: str = "auto", batch: int = 8, **workers: object) -> PretrainArguments:
    settings = replace(SETTINGS, batch=batch)
    return PretrainArguments(out=tmp_path / "x", device=device, settings=settings, workers=Workers(**workers))


@pytest.mark.parametrize(
    ("gpus", "device", "asked", "expected"),
    [
        (0, "auto", {}, None),
        (1, "auto", {}, None),
        (2, "auto", {"worker_cpus": 0}, (2, 1)),
        (2, "cpu", {}, None),
        (2, "cuda", {}, None),
        (2, "cuda:1", {}, None),
        (2, "auto", {"workers": 1}, None),
        (0, "auto", {"workers": 2, "worker_cpus": 0.25}, (2, 0)),
        (4, "cuda", {"workers": 2, "worker_cpus": 0.25}, (2, 1)),
        (4, "cpu", {"workers": 2, "worker_cpus": 0.25}, (2, 0)),
        (4, "auto", {"workers": 2, "worker_cpus": 0.25, "worker_gpus": 0}, (2, 0)),
    ],
)
def test_who_trains(gpus, device, asked, expected, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    workers = ray_workers(arguments(tmp_path, device=device, **asked))
    assert (workers and (workers.workers, workers.worker_gpus)) == expected


def test_gpus_that_do_not_divide_the_batch_are_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(ConfigError, match="--batch must be a multiple of --workers 3, got 8"):
        ray_workers(arguments(tmp_path))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "3"], "--batch must be a multiple of --workers 3, got 8"),
        (["--workers", "-1"], "--workers must not be negative, got -1"),
        (["--workers", "8", "--worker-cpus", "100"], "needs 800 CPUs and 0 GPUs in 8 pieces"),
        (["--workers", "2", "--worker-gpus", "1", "--worker-cpus", "0"], "needs 0 CPUs and 2 GPUs in 2 pieces"),
        (["--worker-gpus", "2"], "--worker-gpus must be 0 or 1"),
        (["--workers", "2", "--device", "cuda:1"], "--device cuda:1 names one GPU, --workers 2 choose theirs"),
        (["--precision", "tf32", "--device", "cpu"], "--precision tf32 needs an NVIDIA GPU"),
    ],
)
def test_impossible_workers_are_one_line_and_make_nothing(flags: list[str], message: str, capsys, tmp_path: Path) -> None:
    assert message in refuse(pretrain.main, [*SMOKE, "--out", str(tmp_path / "out"), *flags], capsys)
    assert not (tmp_path / "out").exists()


STARTING = 240
"""Seconds that Ray may take on a busy machine."""
TWO = ("--workers", "2", "--worker-cpus", "0.5", "--device", "cpu", "--preset", "smoke", "--images", "3200")


def command(*flags: str) -> list[str]:
    imports = "from pirf_ray import pretrain; from pirf_ray.cli.errors import run_command; from pirf_ray.evaluation import cards"
    code = f"{imports}; cards.CARD_STEPS = (2,); run_command(pretrain.main)"
    return [sys.executable, "-c", code, *flags]


@contextmanager
def started(*flags: str) -> Iterator[subprocess.Popen[str]]:
    """A training in a process group of its own, of which nothing outlives the test."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command(*flags), cwd=ROOT, start_new_session=True, **pipes) as process:
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)


def at(out: Path, update: int) -> bool:
    record = Log(out).latest()
    return record is not None and record.update >= update


@pytest.mark.slow
def test_workers_stopped_resumed_and_killed_end_where_one_process_does(data: FieldFile, tmp_path: Path) -> None:
    out, whole = tmp_path / "out", tmp_path / "whole"
    with started(*TWO, "--data", str(data.path), "--out", str(out)) as process:
        wait_for(lambda: at(out, 20), STARTING)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the driver and all of Ray's processes get it
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 130, errors
    done = checkpoints.load_meta(out / "checkpoint")[1]["updates"]
    assert 20 <= done < 400
    told = shlex.split(errors.splitlines()[-1].partition("continue with: python -m pirf_ray.pretrain ")[2])

    with started(*told) as process:
        wait_for(lambda: at(out, done + 10), STARTING)
        os.kill(ray_processes(process.pid, "ray::RayTrainWorker")[0], signal.SIGKILL)
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    assert re.search(r"update 400/400 \| loss 0\.\d+ \| \d+ images/s \| 0\.0 min left", errors)
    updates = [json.loads(line)["update"] for line in (out / "pretrain.jsonl").read_text().splitlines()]
    assert updates == sorted(set(updates))
    assert not (out / ".stop").exists()

    pretrain.main(["--preset", "smoke", "--images", "3200", "--threads", "1", "--data", str(data.path), "--out", str(whole)])
    losses = [checkpoints.load_meta(path / "model")[1]["mean_loss"] for path in (out, whole)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert "--workers 2" in (out / "model" / "CARD.md").read_text()


@pytest.mark.slow
def test_a_diverging_training_over_ray_ends_at_once(data: FieldFile, tmp_path: Path) -> None:
    with started(*TWO, "--data", str(data.path), "--out", str(tmp_path / "out"), "--learning-rate", "1e9") as process:
        _, errors = process.communicate(timeout=240)
    assert process.returncode == 2, errors
    last = errors.splitlines()[-1]
    assert re.search(r"error: loss of update \d+ is (nan|inf); lower the learning rate; there is no checkpoint yet", last)
