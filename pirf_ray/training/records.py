"""The record of one update: what metrics.jsonl holds, typed."""

from dataclasses import dataclass
from typing import Any

from pirf_ray.learning.updates import UpdateMetrics
from pirf_ray.training.guard import GuardMetrics


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Seconds of the parts of an update."""

    wait: float
    """Waiting for the batch's rollouts."""
    learn: float
    """The learner's update."""
    sync: float
    """Publishing the weights."""
    guard: float = 0.0
    """The guard's evaluation."""

    @property
    def update(self) -> float:
        """Return the seconds of the update without the guard."""
        return self.wait + self.learn + self.sync


@dataclass(frozen=True, kw_only=True)
class RolloutMetrics:
    """Which rollouts an update learned from."""

    sample_ids: tuple[int, ...]
    """Samples of the batch."""
    staleness_max: int
    """Updates by which the oldest weights of the batch's rollouts were behind."""
    samples_per_second: float
    """Samples of the batch per second of the update."""


@dataclass(frozen=True, kw_only=True)
class UpdateRecord:
    """Everything that is recorded of an update on rank 0."""

    update: int
    """Updates made, this one included."""
    metrics: UpdateMetrics
    """Numbers of the learner."""
    rollout: RolloutMetrics
    """Which rollouts it learned from."""
    timing: Timing
    """Seconds of its parts."""
    guard: GuardMetrics | None = None
    """The guard's evaluation after it, if there was one."""

    def to_json(self) -> dict[str, Any]:
        """Return the record of metrics.jsonl."""
        return {
            "update": self.update,
            **self.metrics.to_json(),
            "rollout/sample_ids": list(self.rollout.sample_ids),
            "rollout/staleness_max": self.rollout.staleness_max,
            "rollout/samples_per_second": self.rollout.samples_per_second,
            **{f"timing/{name}": seconds for name, seconds in vars(self.timing).items()},
            **(self.guard.to_json() if self.guard else {}),
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "UpdateRecord":
        """Read a record of metrics.jsonl."""
        return cls(
            update=int(record["update"]),
            metrics=UpdateMetrics.from_json(record),
            rollout=RolloutMetrics(
                sample_ids=tuple(record["rollout/sample_ids"]),
                staleness_max=record["rollout/staleness_max"],
                samples_per_second=record["rollout/samples_per_second"],
            ),
            timing=Timing(**{name: record[f"timing/{name}"] for name in ("wait", "learn", "sync", "guard")}),
            guard=GuardMetrics.from_json(record),
        )
