"""The rollout plan: exactness, reuse, staleness, the pool's growth."""

from dataclasses import replace

import pytest

from helpers import fresh_rollouts, tiny_config
from pirf_ray.config import ConfigError, OptimizerSettings, PirfSettings, RolloutSettings, TrainConfig
from pirf_ray.plan import FreshPlan, PoolPlan, make_plan, sample_ids

ALL = PirfSettings(truncation=2, scope="all")


def fresh(**changes: object) -> TrainConfig:
    return tiny_config(pirf=ALL, rollout=fresh_rollouts(**changes))


def test_exact_mode_uses_each_sample_once_made_by_the_weights_it_updates() -> None:
    plan, config = FreshPlan(fresh()), fresh()
    used = [i for u in range(10) for c in plan.batch_chunks(u) for i in sample_ids(config, c)]
    assert used == list(range(40))
    assert [plan.version(c) for u in range(5) for c in plan.batch_chunks(u)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(("reuse", "staleness"), [(1, 0), (1, 1), (1, 3), (2, 1), (4, 3), (4, 5)])
def test_staleness_never_exceeds_its_bound_and_weights_exist_when_needed(reuse: int, staleness: int) -> None:
    plan = FreshPlan(fresh(reuse=reuse, staleness=staleness))
    lags = [u - plan.version(c) for u in range(40) for c in plan.batch_chunks(u)]
    assert min(lags) >= 0
    assert max(lags) == staleness
    for u in range(40):
        assert all(plan.version(c) <= u and plan.retired(u) <= c < plan.horizon(u) for c in plan.batch_chunks(u))


def test_a_prefix_serves_m_updates_then_goes() -> None:
    plan = FreshPlan(fresh(reuse=3, staleness=2))
    assert [plan.batch_chunks(u)[0] for u in range(7)] == [0, 0, 0, 2, 2, 2, 4]
    assert plan.retired(3) == 2


def test_tail_scope_is_never_stale() -> None:
    plan = FreshPlan(tiny_config(rollout=fresh_rollouts()))
    assert {plan.version(c) for c in range(100)} == {0}


def test_pool_grows_at_its_rate_and_drops_the_oldest() -> None:
    """chunk 2: 2 chunks at first, 1 more an update, 4 in the window."""
    plan = PoolPlan(tiny_config())
    windows = [set(range(max(0, u + 2 - 4), u + 2)) for u in range(50)]
    for u, window in enumerate(windows):
        chunks = plan.batch_chunks(u)
        assert len(chunks) == len(set(chunks)) == 2
        assert set(chunks) <= window
        assert plan.retired(u) == min(window)
        assert max(window) < plan.horizon(u)


def test_pool_draws_every_chunk_and_repeats_its_draws() -> None:
    config = tiny_config(rollout=replace(tiny_config().rollout, pool_growth=0.0, pool_start=8))
    draws = [make_plan(config).batch_chunks(u) for u in range(60)]
    assert draws == [make_plan(config).batch_chunks(u) for u in range(60)]
    counts = [sum(c in d for d in draws) for c in range(4)]
    assert min(counts) > 15  # 30 expected each, standard deviation 3.9
    assert (
        make_plan(replace(config, seed=1)).batch_chunks(3) != draws[3]
        or make_plan(replace(config, seed=1)).batch_chunks(4) != draws[4]
    )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_config(pirf=PirfSettings(truncation=5)), r"--truncation must be in \[1, 4\] .*got 5"),
        (lambda: PirfSettings(truncation=0), "--truncation must be at least 1, got 0"),
        (lambda: tiny_config(pirf=ALL), "--strategy pool needs --scope tail"),
        (lambda: fresh(reuse=3), r"--staleness must be at least --reuse - 1 = 2 .*got 0"),
        (lambda: tiny_config(optimizer=OptimizerSettings(batch=5)), "--batch must be a multiple of --chunk 2, got 5"),
        (lambda: RolloutSettings(actors=0), "--actors must be at least 1, got 0"),
        (
            lambda: tiny_config(rollout=replace(tiny_config().rollout, pool_start=2)),
            "--pool-start must be at least --batch 4, got 2",
        ),
    ],
)
def test_settings_that_cannot_work_name_their_flag(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
