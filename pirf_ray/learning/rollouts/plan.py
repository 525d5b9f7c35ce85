"""The rollout plan: which samples an update learns from, and which weights must have made them.

The plan is a pure function of the settings and the update. So a run gives the same bits whatever the number of actors and
their timing: a rollout that is not ready is waited for. Samples are made in chunks of fixed size. Chunk c holds the sample
ids [c * chunk, (c+1) * chunk).
"""

from dataclasses import dataclass
from typing import Literal, Protocol

from envs.common.checks import at_least, not_negative, require
from envs.numerics import seeding

POOL_LOOKAHEAD = 8
"""Updates ahead of the learner that the pool is filled for, so that the actors never wait."""


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """How prefixes (the steps before the last K) are made, and how often one is used."""

    chunk: int = 8
    """Samples an actor makes at once. Fixed, since it changes rounding."""
    strategy: Literal["pool", "fresh"] = "pool"
    """pool: batches are drawn from a pool that actors keep filling (tail scope only). fresh: a prefix serves M updates, then goes."""
    reuse: int = 1
    """M, updates that a fresh prefix serves."""
    staleness: int = 0
    """S, how many updates older than the learner the weights that made a prefix may be. 0 with M=1 is exact."""
    pool: int = 256
    """Prefixes in the pool."""
    pool_start: int = 64
    """Prefixes in the pool before the first update."""
    pool_growth: float = 1.0
    """Prefixes added per update, the oldest ones leaving once the pool is full."""

    def __post_init__(self) -> None:
        at_least(self, 1, "chunk", "reuse", "pool", "pool_start")
        not_negative(self, "staleness", "pool_growth")

    def check(self, *, batch: int, workers: int, scope: str) -> None:
        """Raise ConfigError if the plan cannot serve these batches, learner workers and policy scope."""
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
        require(scope == "tail", "--strategy pool needs --scope tail: with scope all a prefix goes stale; use fresh")
        require(
            self.reuse == 1 and self.staleness == 0,
            "--reuse and --staleness belong to --strategy fresh; a pool is never stale",
        )
        require(self.pool_start >= batch, f"--pool-start must be at least --batch {batch}, got {self.pool_start}")
        require(self.pool >= batch, f"--pool must be at least --batch {batch}, got {self.pool}")


class RolloutPlan(Protocol):
    """The rollout strategy seam."""

    def batch_chunks(self, update: int) -> list[int]:
        """Return the chunks of the batch of this update, in order."""
        ...

    def version(self, chunk: int) -> int:
        """Return the version of the weights that must make this chunk (version v: after v updates)."""
        ...

    def horizon(self, update: int) -> int:
        """Return the chunk below which chunks may be made once the learner is at ``update`` (their version permitting)."""
        ...

    def retired(self, update: int) -> int:
        """Return the chunk below which no chunk is used at ``update`` or later."""
        ...


class FreshPlan:
    """A plan in which every chunk serves M consecutive updates, then goes. Batch j = u // M.

    With scope ``all`` its weights have version max(0, (j+1)M - 1 - S): the oldest that the staleness bound S allows at
    its last use, so rollouts overlap with learning as far as S permits. M = 1 and S = 0 is the exact mode.
    With scope ``tail`` (``fixed``) the base model makes every prefix, and nothing is ever stale.
    """

    def __init__(self, settings: RolloutSettings, *, batch: int, fixed: bool) -> None:
        self.per_batch = batch // settings.chunk
        self.reuse, self.staleness, self.fixed = settings.reuse, settings.staleness, fixed

    def batch_chunks(self, update: int) -> list[int]:
        first = update // self.reuse * self.per_batch
        return list(range(first, first + self.per_batch))

    def version(self, chunk: int) -> int:
        if self.fixed:
            return 0
        iteration = chunk // self.per_batch
        return max(0, (iteration + 1) * self.reuse - 1 - self.staleness)

    def horizon(self, update: int) -> int:
        return (update // self.reuse + 2) * self.per_batch

    def retired(self, update: int) -> int:
        return update // self.reuse * self.per_batch


class PoolPlan:
    """A plan with a pool of prefixes that grows by a fixed rate while the oldest leave; each batch is drawn from it at random.

    Only for scope ``tail``, where no prefix goes stale. At update u the pool is the window of the last ``pool``
    samples among the first pool_start + u * pool_growth.
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
        made = self._made(update)
        window = range(max(0, made - self.size), made)
        rng = seeding.generator(self.seed, "pool", update)
        return [window[i] for i in rng.choice(len(window), size=self.per_batch, replace=False)]

    def version(self, chunk: int) -> int:
        return 0

    def horizon(self, update: int) -> int:
        return self._made(update + POOL_LOOKAHEAD)

    def retired(self, update: int) -> int:
        return max(0, self._made(update) - self.size)


def make_plan(settings: RolloutSettings, *, batch: int, fixed: bool, seed: int) -> RolloutPlan:
    """Return the plan of the settings. ``fixed``: the base model makes every prefix (scope ``tail``)."""
    if settings.strategy == "pool":
        return PoolPlan(settings, batch=batch, seed=seed)
    return FreshPlan(settings, batch=batch, fixed=fixed)


def sample_ids(chunk: int, size: int) -> range:
    """Return the sample ids of a chunk of ``size`` samples."""
    return range(chunk * size, (chunk + 1) * size)
