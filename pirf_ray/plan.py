"""The rollout plan: which samples an update learns from, and which weights must have made them.

A pure function of the config and the update, so a run gives the same bits whatever the number of actors and their
timing: what is not ready yet is waited for. Samples are made in chunks of fixed size; chunk c holds the sample ids
[c * chunk, (c+1) * chunk).
"""

from typing import Protocol

from envs import seeding
from pirf_ray.config import TrainConfig

POOL_LOOKAHEAD = 8
"""Updates ahead of the learner that the pool is filled for, so that the actors never wait."""


class RolloutPlan(Protocol):
    """The rollout strategy seam."""

    def batch_chunks(self, update: int) -> list[int]:
        """Chunks of the batch of this update, in order."""
        ...

    def version(self, chunk: int) -> int:
        """Weights (version v: after v updates) that must make this chunk."""
        ...

    def horizon(self, update: int) -> int:
        """Chunks below this may be made once the learner is at ``update`` (their version permitting)."""
        ...

    def retired(self, update: int) -> int:
        """Chunks below this are not used at ``update`` or later."""
        ...


class FreshPlan:
    """Every chunk serves M consecutive updates, then goes. Batch j = u // M.

    With scope ``all`` its weights have version max(0, (j+1)M - 1 - S): the oldest that the staleness bound S allows at
    its last use, so rollouts overlap with learning as far as S permits. M = 1 and S = 0 is the exact mode.
    With scope ``tail`` the base model makes every prefix, and nothing is ever stale.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.per_batch = config.optimizer.batch // config.rollout.chunk
        self.reuse, self.staleness = config.rollout.reuse, config.rollout.staleness
        self.fixed = config.pirf.scope == "tail"

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
    """A pool of prefixes that grows by a fixed rate while the oldest leave; each batch is drawn from it at random.

    Only for scope ``tail``, where no prefix goes stale. At update u the pool is the window of the last ``pool``
    samples among the first pool_start + u * pool_growth.
    """

    def __init__(self, config: TrainConfig) -> None:
        r = config.rollout
        self.seed = config.seed
        self.per_batch = config.optimizer.batch // r.chunk
        self.start = -(-r.pool_start // r.chunk)
        self.growth = r.pool_growth / r.chunk
        self.size = max(self.per_batch, r.pool // r.chunk)

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


PLANS: dict[str, type[FreshPlan] | type[PoolPlan]] = {"fresh": FreshPlan, "pool": PoolPlan}


def make_plan(config: TrainConfig) -> RolloutPlan:
    return PLANS[config.rollout.strategy](config)


def sample_ids(config: TrainConfig, chunk: int) -> range:
    size = config.rollout.chunk
    return range(chunk * size, (chunk + 1) * size)
