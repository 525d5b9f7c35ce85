"""Weight sync, resources and rollout actors; whole runs over Ray are in test_runs.py."""

import os
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from helpers import fresh_rollouts, tiny_config, tiny_denoiser, tiny_info, write_base
from pirf_ray.communication import Communicator, SingleProcess
from pirf_ray.config import ConfigError, LearnerSettings, PirfSettings, TrainConfig
from pirf_ray.distributed.communicator import TorchCommunicator
from pirf_ray.distributed.driver import check_resources, required
from pirf_ray.distributed.weights import WeightMessage, WeightMismatch
from pirf_ray.finetuning import FineTuning
from pirf_ray.learner import make_policy
from pirf_ray.sources import LocalSource

EXACT = tiny_config(pirf=PirfSettings(truncation=2, scope="all"), rollout=fresh_rollouts())


def test_weights_survive_the_trip_and_are_copies() -> None:
    tensors = {"b": torch.randn(3), "a": torch.randn(2, 2)}
    message = WeightMessage.pack(7, tensors)
    received = message.unpack(7)
    assert all(torch.equal(received[name], tensors[name]) for name in tensors)
    received["a"].zero_()
    assert message.unpack(7)["a"].abs().sum() > 0


def test_other_versions_and_damaged_weights_are_refused() -> None:
    message = WeightMessage.pack(7, {"a": torch.ones(4)})
    with pytest.raises(WeightMismatch, match="got weights of version 7, expected 8"):
        message.unpack(8)
    message.arrays["a"][2] = 1.0000001
    with pytest.raises(WeightMismatch, match="version 7 do not match their checksum"):
        message.unpack(7)


def test_resources_are_counted_and_what_is_missing_is_said() -> None:
    config = tiny_config(
        rollout=fresh_rollouts(actors=6, actor_cpus=0.5, actor_gpus=0.1), learner=LearnerSettings(worker_cpus=1, worker_gpus=0.5)
    )
    assert required(config) == pytest.approx({"CPU": 4.0, "GPU": 1.1})
    check_resources(config, {"CPU": 4.0, "GPU": 2.0})
    with pytest.raises(ConfigError, match=r"--actors 6 and --workers 1 need 4 CPUs .* the cluster has 2"):
        check_resources(config, {"CPU": 2.0, "GPU": 2.0})
    with pytest.raises(ConfigError, match=r"need 1.1 GPUs .* the cluster has 0"):
        check_resources(config, {"CPU": 8.0})


def fit(config: TrainConfig, communicator: Communicator) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    source = LocalSource(config, make_policy(config, tiny_denoiser())) if communicator.rank == 0 else None
    tuning = FineTuning(
        config, tiny_info(), tiny_denoiser(), source=source, communicator=communicator, device=torch.device("cpu")
    )
    tuning.fit()
    return tuning.learner.weights()


def first_gradient(communicator: Communicator) -> torch.Tensor:
    """The gradient of the first update, before Adam, which blows rounding up where a gradient is zero but for rounding."""
    torch.set_num_threads(1)
    source = LocalSource(EXACT, make_policy(EXACT, tiny_denoiser())) if communicator.rank == 0 else None
    tuning = FineTuning(EXACT, tiny_info(), tiny_denoiser(), source=source, communicator=communicator, device=torch.device("cpu"))
    tuning.step()
    return torch.cat([p.grad.flatten() for p in tuning.learner.parameters.values() if p.grad is not None])


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({"gradient": first_gradient(TorchCommunicator()), **fit(EXACT, TorchCommunicator())}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_learner_workers_equal_one_for_the_same_total_batch(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    expected = first_gradient(SingleProcess())
    torch.testing.assert_close(ranks[0]["gradient"], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    import ray

    from pirf_ray.distributed import driver

    driver.connect(EXACT, None)
    yield
    ray.shutdown()


def distributed_fit(tmp_path: Path, config: TrainConfig, kill_at: int | None = None) -> tuple[FineTuning, list[dict]]:
    """The canonical loop in this process, prefixes from Ray actors."""
    import ray

    from pirf_ray.distributed.actors import start_actors
    from pirf_ray.distributed.source import ActorSource

    base = write_base(tmp_path / f"base{time.monotonic_ns()}")
    actors = start_actors(config, base)
    source = ActorSource(config, actors)
    records: list[dict] = []

    def record(line: dict) -> None:
        records.append(line)
        if line["update"] == kill_at:
            os.kill(ray.get(actors[0].process_id.remote()), signal.SIGKILL)

    tuning = FineTuning(
        config, tiny_info(), tiny_denoiser(), source=source, communicator=SingleProcess(), device=torch.device("cpu")
    )
    tuning.fit(record)
    assert source.actors_lost >= (kill_at is not None)
    for actor in actors:
        ray.kill(actor)
    return tuning, records


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("rollout", [EXACT.rollout, fresh_rollouts(reuse=2, staleness=3)], ids=["exact", "stale"])
def test_same_bits_with_no_actor_one_two_or_four(tmp_path: Path, rollout) -> None:
    expected = fit(replace(EXACT, rollout=rollout), SingleProcess())
    for actors in (1, 2, 4):
        config = replace(EXACT, rollout=replace(rollout, actors=actors))
        weights = distributed_fit(tmp_path, config)[0].learner.weights()
        assert all(torch.equal(weights[name], expected[name]) for name in expected), f"{actors} actors"


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_a_killed_actor_loses_no_batch_and_doubles_none(tmp_path: Path) -> None:
    config = replace(EXACT, rollout=replace(EXACT.rollout, actors=2))
    tuning, records = distributed_fit(tmp_path, config, kill_at=2)
    assert [i for r in records for i in r["rollout/sample_ids"]] == list(range(24))
    expected = fit(EXACT, SingleProcess())
    weights = tuning.learner.weights()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_failed_learner_names_its_last_checkpoint(tmp_path: Path) -> None:
    from pirf_ray.distributed.driver import _explain
    from pirf_ray.runs import RunDirectory

    run = RunDirectory.create(tmp_path / "run", EXACT, write_base(tmp_path / "base"))
    error = RuntimeError("Training failed\n  pirf_ray.learner.TrainingDiverged: 3 updates had a non-finite gradient\n")
    assert "TrainingDiverged: 3 updates had a non-finite gradient; no checkpoint was written yet" in _explain(run, error)
    (run.paths.checkpoints / "update_000040").mkdir()
    assert "update_000040; --resume goes on from it" in _explain(run, error)
