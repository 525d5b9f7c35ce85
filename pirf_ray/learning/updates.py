"""The metrics of one update: typed numbers with stable names in groups, as metrics.jsonl holds them."""

from dataclasses import dataclass, field
from typing import Any

NAMED = "learner/"
"""Group of the numbers that objectives and regularizers name."""
OWN = ("learner/grad_norm", "learner/learning_rate", "learner/skipped")
"""Numbers of the group that the learner itself has."""


@dataclass(frozen=True, kw_only=True)
class TermMetrics:
    """Violation of one reward term over the batch of an update."""

    is_residual: bool
    """Whether the term is a residual operator; otherwise it is a condition."""
    mean: float
    """Mean violation of the batch."""
    median: float
    """Median violation of the batch."""
    over_floor: float | None = None
    """Mean violation over the floor, the mean residual of real data. None for a condition."""


@dataclass(frozen=True, kw_only=True)
class UpdateMetrics:
    """Metrics of one update, the same on every rank."""

    reward: float
    """Mean reward."""
    grad_norm: float
    """Norm of the gradient before clipping."""
    learning_rate: float
    """Learning rate of the update."""
    skipped: int
    """Number of updates skipped so far for a non-finite gradient."""
    weight_distance: float | None
    """L2 distance of the learning weights from the pretrained weights. None for a skipped update."""
    named: dict[str, float] = field(default_factory=dict)
    """Means of the numbers that the objective, the regularizers and the learnables name."""
    parts: dict[str, float] = field(default_factory=dict)
    """Means of the parts of the reward by name."""
    terms: dict[str, TermMetrics] = field(default_factory=dict)
    """Metrics of the reward's violations by name."""

    def to_json(self) -> dict[str, Any]:
        """Return the numbers by their names in metrics.jsonl: ``reward/ residual/ condition/ learner/ weights/``."""
        record: dict[str, Any] = {
            "reward/mean": self.reward,
            **{f"reward/{name}": value for name, value in self.parts.items()},
            **{f"{NAMED}{name}": value for name, value in self.named.items()},
            "learner/grad_norm": self.grad_norm,
            "learner/learning_rate": self.learning_rate,
        }
        for name, term in self.terms.items():
            group = "residual" if term.is_residual else "condition"
            record |= {f"{group}/{name}/mean": term.mean, f"{group}/{name}/median": term.median}
            if term.over_floor is not None:
                record["residual/over_floor"] = term.over_floor
        record["learner/skipped"] = float(self.skipped)
        if self.weight_distance is not None:
            record["weights/distance"] = self.weight_distance
        return record

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "UpdateMetrics":
        """Read the numbers back from a record of metrics.jsonl."""
        terms = {}
        for key in record:
            group, _, rest = key.partition("/")
            name, _, statistic = rest.rpartition("/")
            if group in ("residual", "condition") and statistic == "mean" and name:
                terms[name] = TermMetrics(
                    is_residual=group == "residual",
                    mean=record[key],
                    median=record[f"{group}/{name}/median"],
                    over_floor=record.get("residual/over_floor") if group == "residual" else None,
                )
        return cls(
            reward=record["reward/mean"],
            grad_norm=record["learner/grad_norm"],
            learning_rate=record["learner/learning_rate"],
            skipped=int(record["learner/skipped"]),
            weight_distance=record.get("weights/distance"),
            named={k.removeprefix(NAMED): v for k, v in record.items() if k.startswith(NAMED) and k not in OWN},
            parts={k.removeprefix("reward/"): v for k, v in record.items() if k.startswith("reward/") and k != "reward/mean"},
            terms=terms,
        )
