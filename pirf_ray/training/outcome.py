"""How a fine-tuning run ends: its outcome, or the error that ended it for good."""

from dataclasses import dataclass
from typing import Any


class LearnerFailed(RuntimeError):
    """The end of a run whose learner failed for good; the message names the last good checkpoint.

    ``errno``: the error number of the disk, if the disk refused.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a run ended."""

    updates: int
    """Updates that were made."""
    finished: bool
    """Whether these are all that were asked for."""
    stopped_by_guard: bool
    """Whether the fidelity guard ended the training."""
    kept_update: int
    """Update of the kept model."""
    actors_lost: int
    """Rollout actors that were lost; their work was redone."""
    guarded: bool = True
    """Whether the guard was enforced."""

    @classmethod
    def from_json(cls, data: dict[str, Any], *, guarded: bool) -> "Outcome":
        """Read what the learner wrote to outcome.json."""
        guard = data["guard"]
        return cls(
            updates=data["updates"],
            finished=data["finished"],
            stopped_by_guard=guard["stopped"],
            kept_update=guard["kept_update"],
            actors_lost=data.get("actors_lost", 0),
            guarded=guarded,
        )

    def sentence(self, asked: int) -> str:
        """Say to the user how a run of ``asked`` updates ended."""
        lost = f"; {self.actors_lost} rollout actors were lost on the way and their work redone" if self.actors_lost else ""
        return self._end(asked) + lost

    def _end(self, asked: int) -> str:
        if self.stopped_by_guard:
            return (
                f"the fidelity guard ended the training after {self.updates} of {asked} updates; "
                f"kept is the best model inside its limits, of update {self.kept_update}"
            )
        kept = "the best one inside the guard's limits" if self.guarded else "the last one: no guard was enforced"
        return f"{self.updates} of {asked} updates; kept is update {self.kept_update}, {kept}"
