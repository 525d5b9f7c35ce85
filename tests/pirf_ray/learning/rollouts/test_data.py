"""Solver fields as rollouts: which fields, moved how, and what they carry."""

import pytest
import torch

from data_training import FIELDS, PDE8, PROCESS, maker
from envs.common.checks import ConfigError
from envs.pdes.base import NotProvided
from pirf_ray.learning.rollouts import MAKERS, Requests, Sample
from pirf_ray.learning.rollouts.data import DataSettings
from pirf_ray.learning.rollouts.sources import RolloutWorker
from tiny_models import tiny_config, tiny_denoiser

REQUESTS = Requests(sample_ids=(3, 4, 9), groups=(3, 4, 9), seed=1, stream="rollout", version=2)


def worker() -> RolloutWorker:
    config = tiny_config(objective="pidm", data_fields=FIELDS, regularizers=(), strategy="fresh", scope="all")
    return RolloutWorker(config.rollout_task({}), tiny_denoiser())


def test_the_samples_are_data_without_reward() -> None:
    own = worker()
    made = own.maker.make(own.env, own.policies, REQUESTS)
    assert isinstance(made, Sample) and made.source == "data" and not own.maker.rewarded
    assert (made.sample_ids, made.groups, made.policy_version) == ((3, 4, 9), (3, 4, 9), 2)
    assert made.x.shape == (3, *PDE8.shape) and made.x.dtype == torch.float32
    assert made.reward.tolist() == [0.0] * 3
    assert own.maker.cost(PROCESS) == 0.0


def test_a_field_is_a_function_of_seed_stream_and_id() -> None:
    fields = maker().fields(PDE8, 1, "rollout", (3, 4, 9))
    assert torch.equal(maker().fields(PDE8, 1, "rollout", (9, 3)), fields[[2, 0]])
    for seed, stream in ((2, "rollout"), (1, "other")):
        assert not torch.equal(maker().fields(PDE8, seed, stream, (3, 4, 9)), fields)


def test_most_fields_are_moved_by_a_symmetry_and_all_obey_the_equation() -> None:
    """Most symmetries of a field are no other field of the data. On exact data the residual is a rounding error, floor 7e-5."""
    data = PDE8.normalizer.to_model(PDE8.solve(0, "train", range(FIELDS)).float())
    fields = maker().fields(PDE8, 0, "rollout", range(16))
    moved = [(data - field).abs().flatten(1).amax(1).min() > 1e-3 for field in fields]
    assert sum(moved) > 8
    exact, own = (PDE8.residual(PDE8.normalizer.to_physical(x.double()), "consistent").mean() for x in (data, fields))
    assert own < 3 * exact


def test_every_row_is_drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """640 draws of 32 rows: each row 20 times, with a standard deviation of sqrt(20 31/32) = 4.4."""
    marked = torch.arange(FIELDS, dtype=torch.float64).reshape(-1, 1, 1, 1).expand(-1, *PDE8.shape)
    monkeypatch.setattr("pirf_ray.learning.rollouts.data._solved", lambda pde, count: marked)
    monkeypatch.setattr(type(PDE8), "augment", lambda self, fields, rng: fields)
    drawn = PDE8.normalizer.to_physical(maker().fields(PDE8, 0, "rollout", range(640)))[:, 0, 0, 0].round().int()
    counts = torch.bincount(drawn, minlength=FIELDS)
    assert len(counts) == FIELDS and (counts - 20).abs().max() < 5 * 4.4


def test_a_pde_with_less_data_gives_what_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    solve = type(PDE8).solve
    monkeypatch.setattr(type(PDE8), "available", lambda self, stream: 5)
    monkeypatch.setattr(
        type(PDE8), "solve", lambda self, seed, stream, ids: asked.append(len(ids)) or solve(self, seed, stream, ids)
    )
    MAKERS.make("data", DataSettings(data_fields=7), None).fields(PDE8, 0, "rollout", (0, 1))
    assert asked == [5]


def test_a_pde_without_a_solver_and_a_wrong_setting_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = worker()
    monkeypatch.setattr(type(own.env.pde), "provides", lambda self, name: name != "solve")
    with pytest.raises(NotProvided, match=r"Burgers-v0 has no solver \(solve\): --maker data needs one"):
        own.maker.make(own.env, own.policies, REQUESTS)
    with pytest.raises(ConfigError, match="--data-fields must be at least 1, got 0"):
        DataSettings(data_fields=0)
