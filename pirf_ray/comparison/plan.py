"""What a benchmark measures, and with what budgets: everything that decides the content of its cells."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from envs.common.checks import at_least, not_negative, positive, require

REPEATED = ("base", "cocogen", "pirf-freeze", "pirf-ray-uncorrected")
"""Methods that every seed is spent on by default."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of a benchmark. Finished cells are kept only while these stay the same; methods, seeds and steps may grow."""

    resolution: int = 32
    """Rows and columns of the fields."""
    trials: int = 3
    """Trials of every method that has settings to search; the first one has its authors' settings."""
    trial_budget: float = 5_000
    """What a trial's training may spend, in network forwards of one sample; a gradient counts two more."""
    budget: float = 15_000
    """What a training with the best settings may spend."""
    train_steps: int = 20
    """N, steps of the sampler that methods train for and that trials are judged at."""
    samples: int = 96
    """Test samples of each method and N, from the same noise."""
    real: int = 2048
    """Held-out solver samples that they are compared with; as many again as --samples are the row of real data."""
    training: int = 2048
    """Fields of the base model's training data among which the nearest is looked for."""
    validation: int = 48
    """Samples that judge a trial, of noise and held-out data that no test sees."""
    batch: int = 64
    """Samples at once."""
    threads: int = 1
    """Torch threads of a cell. Fixed, since it changes rounding."""

    def __post_init__(self) -> None:
        at_least(self, 2, "samples", "real", "validation")
        at_least(self, 1, "trials", "training", "batch", "threads", "train_steps")
        positive(self, "budget", "trial_budget")

    def to_json(self) -> dict[str, Any]:
        """Return the sizes as plan.json holds them."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class EvaluationGrid:
    """N and seeds at which methods are evaluated."""

    num_steps: tuple[int, ...] = (5, 10, 20, 40)
    """N, steps of the sampler, at which methods are evaluated."""
    seeds: int = 3
    """Seeds of training, noise and held-out data for the methods of --repeated."""
    repeated: tuple[str, ...] = REPEATED
    """Methods that get every seed, with the methods that finish their samples; the others get the first."""
    repeated_steps: tuple[int, ...] = (10, 20)
    """N at which seeds after the first are evaluated."""

    def __post_init__(self) -> None:
        require(min(self.num_steps, default=0) >= 2, f"--num-steps must be at least 2 each, got {self.num_steps}")
        at_least(self, 1, "seeds")

    def steps_of(self, seed: int) -> tuple[int, ...]:
        """Return the N at which a seed is evaluated, in rising order."""
        return tuple(n for n in sorted(set(self.num_steps)) if seed == 0 or n in self.repeated_steps)

    def seeds_of(self, method: str) -> range:
        """Return the seeds of a method that makes its own samples."""
        return range(self.seeds if method in self.repeated else 1)


@dataclass(frozen=True, kw_only=True)
class JobSettings:
    """What Ray reserves for each job."""

    job_cpus: float = 1.0
    """CPUs that Ray reserves for each job; so many jobs run at once as fit."""
    job_gpus: float = 0.0
    """GPUs that Ray reserves for each job; fractions share one. Jobs compute on the CPU if it is 0."""

    def __post_init__(self) -> None:
        not_negative(self, "job_cpus", "job_gpus")

    @property
    def device(self) -> str:
        """Return the device that jobs compute on."""
        return "cuda" if self.job_gpus > 0 else "cpu"


def small() -> Plan:
    """Return sizes for under three hours on two cores for five PDEs."""
    return Plan()


def smoke() -> Plan:
    """Return sizes for tests: seconds per method."""
    return Plan(trials=2, trial_budget=3_500, budget=4_000, train_steps=5, samples=8, real=32, training=16, validation=8)


def paper() -> Plan:
    """Return sizes for 128x128 fields on GPUs, with the user's own base models (``--base``)."""
    return Plan(
        resolution=128, trials=8, trial_budget=400_000, budget=2_000_000, samples=1600, validation=256, training=8192, threads=4
    )


PLANS: dict[str, Callable[[], Plan]] = {"smoke": smoke, "small": small, "paper": paper}
DEFAULT_PRESET = "small"
