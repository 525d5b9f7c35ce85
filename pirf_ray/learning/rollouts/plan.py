"""The rollout plan: which samples an update learns from, and which weights must have made them.

The plan is a pure function of the settings and the update. The learner waits for a rollout that is not ready. So a run gives
the same bits for every number of actors and every timing. Samples are made in chunks of fixed size. Chunk c holds the sample
ids [c * chunk, (c+1) * chunk).
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from envs.common.checks import at_least, not_negative, require
from envs.numerics import seeding

POOL_LOOKAHEAD = 8
"""Number of updates for which the pool is filled ahead of the learner, so that actors never wait."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """Settings of the making and the reuse of rollouts."""

    chunk: int = 8
    """Samples that an actor makes at once. The number is fixed in a run because it changes rounding."""
    group: int = 1
    """Samples of one group, which credits and coupled losses compare with each other. A chunk holds whole groups."""
    strategy: Literal["pool", "fresh"] = "pool"
    """pool: batches are drawn from a pool that actors keep filling, of rollouts that the base model makes (prefixes with scope
    tail). fresh: a rollout serves M updates, then leaves."""
    reuse: int = 1
    """M, the number of updates that a fresh rollout serves."""
    staleness: int = 0
    """S, the largest number of updates by which a rollout's weights may be behind the learner. S = 0 with M = 1 is exact."""
    pool: int = 256
    """Rollouts in the pool."""
    pool_start: int = 64
    """Rollouts in the pool before the first update."""
    pool_growth: float = 1.0
    """Rollouts added per update. In a full pool the oldest leave."""

    def __post_init__(self) -> None:
        at_least(self, 1, "chunk", "group", "reuse", "pool", "pool_start")
        not_negative(self, "staleness", "pool_growth")

    def check(self, *, batch: int, workers: int, fixed: bool) -> None:
        """Raise ConfigError if the plan cannot serve these batches and learner workers.

        ``fixed``: the base model makes every rollout.
        """
        require(self.chunk % self.group == 0, f"--chunk must be a multiple of --group {self.group}, got {self.chunk}")
        require(batch % self.chunk == 0, f"--batch must be a multiple of --chunk {self.chunk}, got {batch}")
        require(
            (batch // self.chunk) % workers == 0,
            f"--batch must be a multiple of --chunk x --workers = {self.chunk * workers}, got {batch}",
        )
        if self.strategy == "fresh":
            require(
                self.staleness >= self.reuse - 1,
                f"--staleness must be at least --reuse - 1 = {self.reuse - 1} "
                f"(the last of M updates is M-1 newer), got {self.staleness}",
            )
            return
        require(
            fixed,
            "--strategy pool needs rollouts that the base model makes: prefixes with --scope tail; others go stale, use fresh",
        )
        require(
            self.reuse == 1 and self.staleness == 0,
            "--reuse and --staleness belong to --strategy fresh; a pool is never stale",
        )
        require(self.pool_start >= batch, f"--pool-start must be at least --batch {batch}, got {self.pool_start}")
        require(self.pool >= batch, f"--pool must be at least --batch {batch}, got {self.pool}")


class RolloutPlan(Protocol):
    """Seam of the rollout strategies: the chunks of each update, and the weights that make each chunk."""

    def batch_chunks(self, update: int) -> list[int]:
        """Return the chunks of an update's batch, in order."""
        ...

    def version(self, chunk: int) -> int:
        """Return the version of the weights that must make a chunk. Version v follows v updates."""
        ...

    def horizon(self, update: int) -> int:
        """Return the chunk below which chunks may be made when the learner is at ``update`` and has their version."""
        ...

    def retired(self, update: int) -> int:
        """Return the chunk below which no chunk is used at ``update`` or later."""
        ...


class FreshPlan:
    """Plan in which every chunk serves M consecutive updates, then leaves. Update u uses batch j = u // M.

    With scope ``all`` the weights of batch j have version max(0, (j+1)M - 1 - S). This is the oldest version that the staleness
    bound S allows at the last use, so rollouts overlap with learning as far as S permits. M = 1 and S = 0 is the exact mode.
    With scope ``tail`` (``fixed``) the base model makes every prefix, and no prefix is stale.
    """

    def __init__(self, settings: RolloutSettings, *, batch: int, fixed: bool) -> None:
        self.per_batch = batch // settings.chunk
        self.reuse, self.staleness, self.fixed = settings.reuse, settings.staleness, fixed

    def batch_chunks(self, update: int) -> list[int]:
        """Return the chunks of batch u // M."""
        first = update // self.reuse * self.per_batch
        return list(range(first, first + self.per_batch))

    def version(self, chunk: int) -> int:
        """Return the oldest version that the staleness bound allows at the chunk's last use; 0 if the base model makes it."""
        if self.fixed:
            return 0
        iteration = chunk // self.per_batch
        return max(0, (iteration + 1) * self.reuse - 1 - self.staleness)

    def horizon(self, update: int) -> int:
        """Return the first chunk after the next batch."""
        return (update // self.reuse + 2) * self.per_batch

    def retired(self, update: int) -> int:
        """Return the first chunk of the present batch."""
        return update // self.reuse * self.per_batch


class PoolPlan:
    """Plan with a pool of prefixes that grows at a fixed rate. Each batch is drawn from the pool at random.

    At update u the pool is the last ``pool`` samples among the first pool_start + u * pool_growth. It needs scope ``tail``, with
    which no prefix goes stale.
    """

    def __init__(self, settings: RolloutSettings, *, batch: int, seed: int) -> None:
        self.seed = seed
        self.per_batch = batch // settings.chunk
        self.start = -(-settings.pool_start // settings.chunk)
        self.growth = settings.pool_growth / settings.chunk
        self.size = max(self.per_batch, settings.pool // settings.chunk)

    def _made(self, update: int) -> int:
        return self.start + int(update * self.growth)

    def batch_chunks(self, update: int) -> list[int]:
        """Return distinct chunks of the pool, drawn at random by (seed, update)."""
        made = self._made(update)
        window = range(max(0, made - self.size), made)
        rng = seeding.generator(self.seed, "pool", update)
        return [window[i] for i in rng.choice(len(window), size=self.per_batch, replace=False)]

    def version(self, chunk: int) -> int:
        """Return 0: the base model makes every chunk."""
        return 0

    def horizon(self, update: int) -> int:
        """Return the end of the pool POOL_LOOKAHEAD updates later."""
        return self._made(update + POOL_LOOKAHEAD)

    def retired(self, update: int) -> int:
        """Return the first chunk of the pool."""
        return max(0, self._made(update) - self.size)


def make_plan(settings: RolloutSettings, *, batch: int, fixed: bool, seed: int) -> RolloutPlan:
    """Return the plan of the settings. ``fixed``: the base model makes every prefix (scope ``tail``)."""
    if settings.strategy == "pool":
        return PoolPlan(settings, batch=batch, seed=seed)
    return FreshPlan(settings, batch=batch, fixed=fixed)


def sample_ids(chunk: int, size: int) -> range:
    """Return the sample ids of a chunk of ``size`` samples."""
    return range(chunk * size, (chunk + 1) * size)
