"""Weight sync, resources and rollout actors; whole runs over Ray are in tests/system."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from envs.common.checks import ConfigError
from pirf_ray.distributed.actors import RolloutActor
from pirf_ray.distributed.cluster import check_run, count_room, fits, pieces_of
from pirf_ray.distributed.communicator import TorchCommunicator
from pirf_ray.distributed.weights import WeightMessage, WeightMismatch
from pirf_ray.learning.communicator import Communicator, SingleProcess
from pirf_ray.training.finetuning import FineTuning
from pirf_ray.training.records import UpdateRecord
from pirf_ray.training.settings import TrainConfig
from tiny_models import CPU, EXACT, start_run, tiny_config, tiny_denoiser, tiny_info, tiny_learner, tiny_source, write_base

CONFIG = tiny_config(**EXACT)
LEARNABLE: dict[str, Any] = {"objective": "surrogate", "surrogate_width": 4, "regularizers": ("l2",)}
LOW_RANK: dict[str, Any] = {"parameters": "low-rank", "lora_rank": 2}


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
    config = tiny_config(actors=6, actor_cpus=0.5, actor_gpus=0.1, worker_cpus=1, worker_gpus=0.5)
    pieces = pieces_of(config)
    assert len(pieces) == 7
    assert sum(piece["CPU"] for piece in pieces) == pytest.approx(4.0)
    assert sum(piece["GPU"] for piece in pieces) == pytest.approx(1.1)
    check_run(config, [{"CPU": 4.0, "GPU": 2.0}])
    with pytest.raises(ConfigError, match=r"--actors.*needs 4 CPUs and 1.1 GPUs in 7 pieces, the cluster has 2 and 2 on 1 nodes"):
        check_run(config, [{"CPU": 2.0, "GPU": 2.0}])
    with pytest.raises(ConfigError, match=r"needs 4 CPUs and 1.1 GPUs .* the cluster has 8 and 0"):
        check_run(config, [{"CPU": 8.0}])


def test_pieces_must_fit_on_nodes_not_on_their_sum() -> None:
    """Two nodes of one CPU hold no piece of 1.5, though their sum does; three pieces of .5 fit twice on two CPUs with one left."""
    nodes = [{"CPU": 1.0}, {"CPU": 1.0}]
    assert not fits(nodes, [{"CPU": 1.5}])
    assert fits(nodes, [{"CPU": 0.5}] * 4) and not fits(nodes, [{"CPU": 0.5}] * 5)
    assert count_room([{"CPU": 0.5}], nodes, at_most=9) == 4
    assert count_room([{"CPU": 0.5}] * 3, nodes, at_most=9) == 1
    assert nodes == [{"CPU": 1.0}, {"CPU": 1.0}], "counting reserves nothing"


def test_an_actor_knows_neither_the_learner_nor_an_optimizer() -> None:
    """Ray imports the actor's module, and all that it imports, in every actor."""
    code = "import sys, pirf_ray.distributed.actors; print([m for m in sys.modules if m.startswith('pirf_ray.learning')])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "rollouts.prefixes" in loaded
    for name in ("learner", "objectives", "optimization", "learnables", "losses", "credit", "regularizers"):
        assert f"pirf_ray.learning.{name}" not in loaded


@pytest.mark.parametrize("settings", [{}, LOW_RANK], ids=["layers", "low-rank"])
def test_an_actor_makes_what_this_process_makes(settings: dict[str, Any], tmp_path: Path) -> None:
    """From what the learner publishes: learning tensors alone, of the layers or of the factors."""
    config, base = tiny_config(**EXACT, **settings), write_base(tmp_path / "base")
    learner, here = tiny_learner(config), tiny_source(config)
    here.publish(0, learner.published())
    learner.update(here.batch(0))
    here.publish(1, learner.published())
    actor = RolloutActor(config.rollout_task({}), base, 1, "cpu")
    message = WeightMessage.pack(1, learner.published())
    assert message.arrays.keys() == learner.weights().keys()
    expected = here.batch(1)[0]
    found = actor.make(config.plan().batch_chunks(1)[0], 1, message)
    assert found.sample_ids == expected.sample_ids and found.policy_version == 1
    torch.testing.assert_close(found.x, expected.x, rtol=1e-4, atol=1e-5)
    with pytest.raises(WeightMismatch):
        actor.load(2, message)


def test_the_base_models_rollouts_need_no_weights(tmp_path: Path) -> None:
    actor = RolloutActor(tiny_config().rollout_task({}), write_base(tmp_path / "base"), 1, "cpu")
    assert actor.make(3, 0, None).sample_ids == (6, 7) and actor.version is None


def test_an_actor_refuses_a_base_model_of_another_pde(tmp_path: Path) -> None:
    task = tiny_config(env="Poisson-v0").rollout_task({})
    with pytest.raises(ValueError, match="the model belongs to Burgers-v0 .*the environment to Poisson-v0"):
        RolloutActor(task, write_base(tmp_path / "base"), 1, "cpu")


def fit(config: TrainConfig, communicator: Communicator) -> dict[str, torch.Tensor]:
    torch.set_num_threads(1)
    source = tiny_source(config) if communicator.rank == 0 else None
    tuning = FineTuning(config, tiny_info(), tiny_denoiser(), source=source, communicator=communicator, device=CPU)
    tuning.fit()
    return tuning.learner.weights()


def first_gradient(communicator: Communicator) -> torch.Tensor:
    """The gradient of the first update, before Adam, which blows rounding up where a gradient is zero but for rounding."""
    torch.set_num_threads(1)
    source = tiny_source(CONFIG) if communicator.rank == 0 else None
    tuning = FineTuning(CONFIG, tiny_info(), tiny_denoiser(), source=source, communicator=communicator, device=CPU)
    tuning.step()
    return torch.cat([p.grad.flatten() for p in tuning.learner.optimizer.parameters])


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save({"gradient": first_gradient(TorchCommunicator()), **fit(CONFIG, TorchCommunicator())}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_learner_workers_equal_one_for_the_same_total_batch(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    assert all(torch.equal(ranks[0][name], ranks[1][name]) for name in ranks[0])
    expected = first_gradient(SingleProcess())
    torch.testing.assert_close(ranks[0]["gradient"], expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    import ray

    from pirf_ray.distributed import cluster

    cluster.connect(CONFIG, None)
    yield
    ray.shutdown()


def distributed_fit(tmp_path: Path, config: TrainConfig, kill_at: int | None = None) -> tuple[FineTuning, list[UpdateRecord]]:
    """The canonical loop in this process, rollouts from Ray actors."""
    import ray

    from pirf_ray.distributed.driver import start_actors
    from pirf_ray.distributed.source import ActorSource

    base = write_base(tmp_path / f"base{time.monotonic_ns()}")
    actors = start_actors(config, base, {})
    source = ActorSource(config.plan(), actors, fixed=False, staleness=config.rollout.staleness)
    records: list[UpdateRecord] = []

    def record(line: UpdateRecord) -> None:
        records.append(line)
        if line.update == kill_at:
            os.kill(ray.get(actors[0].process_id.remote()), signal.SIGKILL)

    tuning = FineTuning(config, tiny_info(), tiny_denoiser(), source=source, communicator=SingleProcess(), device=CPU)
    tuning.fit(record)
    assert source.actors_lost >= (kill_at is not None)
    for actor in actors:
        ray.kill(actor)
    return tuning, records


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
@pytest.mark.parametrize(
    "settings", [{}, {"reuse": 2, "staleness": 3}, LEARNABLE, LOW_RANK], ids=["exact", "stale", "learnable", "low-rank"]
)
def test_same_bits_with_no_actor_one_two_or_four(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Also for trajectories with rewards of the actors, which teach a learnable, and for factors."""
    expected = fit(CONFIG.with_settings(**settings), SingleProcess())
    for actors in (1, 2, 4):
        config = CONFIG.with_settings(**settings, actors=actors)
        weights = distributed_fit(tmp_path, config)[0].learner.weights()
        assert all(torch.equal(weights[name], expected[name]) for name in expected), f"{actors} actors"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_here")
def test_a_killed_actor_loses_no_batch_and_doubles_none(tmp_path: Path) -> None:
    tuning, records = distributed_fit(tmp_path, CONFIG.with_settings(actors=2), kill_at=2)
    assert [i for r in records for i in r.rollout.sample_ids] == list(range(24))
    expected = fit(CONFIG, SingleProcess())
    weights = tuning.learner.weights()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_a_failed_learner_names_its_last_checkpoint(tmp_path: Path) -> None:
    from pirf_ray.distributed.driver import explain

    run = start_run(tmp_path, CONFIG)
    error = RuntimeError("Training failed\n  pirf_ray.learning.learner.TrainingDiverged: 3 updates had a non-finite gradient\n")
    assert "TrainingDiverged: 3 updates had a non-finite gradient; no checkpoint was written yet" in explain(run, error)
    (run.paths.checkpoints / "update_000040").mkdir()
    assert "update_000040; --resume continues from it" in explain(run, error)
