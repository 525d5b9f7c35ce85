"""The rollout plan: exactness, reuse, staleness, the pool's growth."""

from typing import Any

import pytest

from envs.common.checks import ConfigError
from pirf_ray.diffusion.policy import PolicySettings
from pirf_ray.learning.rollouts.plan import FreshPlan, PoolPlan, RolloutSettings, sample_ids
from pirf_ray.training.resources import ActorSettings
from tiny_models import tiny_config

BATCH, CHUNK = 4, 2


def fresh(*, fixed: bool = False, **changes: Any) -> FreshPlan:
    settings = RolloutSettings(chunk=CHUNK, strategy="fresh", **changes)
    return FreshPlan(settings, batch=BATCH, fixed=fixed)


def pool(*, seed: int = 0, **changes: Any) -> PoolPlan:
    settings = RolloutSettings(**{"chunk": CHUNK, "pool": 8, "pool_start": 4, "pool_growth": 2, **changes})
    return PoolPlan(settings, batch=BATCH, seed=seed)


def test_exact_mode_uses_each_sample_once_made_by_the_weights_it_updates() -> None:
    plan = fresh()
    used = [i for u in range(10) for c in plan.batch_chunks(u) for i in sample_ids(c, CHUNK)]
    assert used == list(range(40))
    assert [plan.version(c) for u in range(5) for c in plan.batch_chunks(u)] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]


@pytest.mark.parametrize(("reuse", "staleness"), [(1, 0), (1, 1), (1, 3), (2, 1), (4, 3), (4, 5)])
def test_staleness_never_exceeds_its_bound_and_weights_exist_when_needed(reuse: int, staleness: int) -> None:
    plan = fresh(reuse=reuse, staleness=staleness)
    lags = [u - plan.version(c) for u in range(40) for c in plan.batch_chunks(u)]
    assert min(lags) >= 0
    assert max(lags) == staleness
    for u in range(40):
        assert all(plan.version(c) <= u and plan.retired(u) <= c < plan.horizon(u) for c in plan.batch_chunks(u))


def test_a_prefix_serves_m_updates_then_goes() -> None:
    plan = fresh(reuse=3, staleness=2)
    assert [plan.batch_chunks(u)[0] for u in range(7)] == [0, 0, 0, 2, 2, 2, 4]
    assert plan.retired(3) == 2


def test_tail_scope_is_never_stale() -> None:
    plan = fresh(fixed=True)
    assert {plan.version(c) for c in range(100)} == {0}


def test_pool_grows_at_its_rate_and_drops_the_oldest() -> None:
    """The pool starts with 2 chunks of 2 samples, grows by 1 chunk per update and holds 4 chunks."""
    plan = pool()
    windows = [set(range(max(0, u + 2 - 4), u + 2)) for u in range(50)]
    for u, window in enumerate(windows):
        chunks = plan.batch_chunks(u)
        assert len(chunks) == len(set(chunks)) == 2
        assert set(chunks) <= window
        assert plan.retired(u) == min(window)
        assert max(window) < plan.horizon(u)


def test_pool_draws_every_chunk_and_repeats_its_draws() -> None:
    changes = {"pool_growth": 0.0, "pool_start": 8}
    draws = [pool(**changes).batch_chunks(u) for u in range(60)]
    assert draws == [pool(**changes).batch_chunks(u) for u in range(60)]
    counts = [sum(c in d for d in draws) for c in range(4)]
    assert min(counts) > 15  # 30 expected each, standard deviation 3.9
    other = pool(seed=1, **changes)
    assert other.batch_chunks(3) != draws[3] or other.batch_chunks(4) != draws[4]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tiny_config(truncation=5), r"--truncation must be in \[1, 4\] .*got 5"),
        (lambda: PolicySettings(truncation=-1), "--truncation must be at least 0, got -1"),
        (
            lambda: tiny_config(scope="all"),
            "--strategy pool needs rollouts that the base model makes: prefixes with --scope tail",
        ),
        (lambda: tiny_config(scope="all", strategy="fresh", reuse=3), r"--staleness must be at least --reuse - 1 = 2 .*got 0"),
        (lambda: tiny_config(batch=5), "--batch must be a multiple of --chunk 2, got 5"),
        (lambda: ActorSettings(actors=0), "--actors must be at least 1, got 0"),
        (
            lambda: tiny_config(pool_start=2),
            "--pool-start must be at least --batch 4, got 2",
        ),
    ],
)
def test_settings_that_cannot_work_name_their_flag(make, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()
