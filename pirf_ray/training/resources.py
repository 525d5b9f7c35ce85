"""Settings of where a training runs: rollout actors, learner workers, the final evaluation."""

from dataclasses import dataclass

from envs.common.checks import at_least, not_negative


@dataclass(frozen=True, kw_only=True)
class ActorSettings:
    """Who makes the rollouts."""

    actors: int = 2
    """Rollout actors."""
    actor_cpus: float = 0.5
    """CPUs that Ray reserves for each actor; fractions share a core."""
    actor_gpus: float = 0.0
    """GPUs that Ray reserves for each actor; fractions share a GPU."""
    actor_threads: int = 1
    """Torch threads of an actor. Fixed, since it changes rounding."""

    def __post_init__(self) -> None:
        at_least(self, 1, "actors", "actor_threads")
        not_negative(self, "actor_cpus", "actor_gpus")


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """Where the learner runs."""

    workers: int = 1
    """Ray Train workers; each takes an equal share of the batch."""
    worker_cpus: float = 0.5
    """CPUs that Ray reserves for each worker."""
    worker_gpus: float = 0.0
    """GPUs that Ray reserves for each worker."""
    worker_threads: int = 1
    """Torch threads of a worker. Fixed, since it changes rounding. On a shared machine two workers of one thread keep their
    pace, where two threads of one worker wait for each other."""
    checkpoint_every: int = 20
    """Updates between checkpoints."""
    max_failures: int = 3
    """Times the learner may be restarted after a lost worker."""

    def __post_init__(self) -> None:
        at_least(self, 1, "workers", "worker_threads", "checkpoint_every")
        not_negative(self, "worker_cpus", "worker_gpus", "max_failures")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The final evaluation."""

    samples: int = 256
    """Samples of the base and of the tuned model, from the same noise."""
    real: int = 1024
    """Held-out solver samples that they are compared with."""

    def __post_init__(self) -> None:
        at_least(self, 2, "samples", "real")
