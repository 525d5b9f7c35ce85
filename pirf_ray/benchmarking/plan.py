"""What a benchmark measures, and with what budgets: everything that decides the content of its cells."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from pirf_ray.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes of a benchmark. Finished cells are kept only where these are the same; methods, seeds and steps may grow."""

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
    """Held-out solver samples that they are compared with; as many again as --samples are the real-against-real figure."""
    training: int = 2048
    """Fields of the base model's training data among which the nearest is looked for."""
    validation: int = 48
    """Samples that judge a trial, of noise and held-out data that no test sees."""
    batch: int = 64
    """Samples at once."""
    threads: int = 1
    """Torch threads of a cell. Fixed, since it changes rounding."""

    def __post_init__(self) -> None:
        for name in ("samples", "real", "validation"):
            if getattr(self, name) < 2:
                raise ConfigError(f"--{name} must be at least 2, got {getattr(self, name)}")
        for name in ("trials", "training", "batch", "threads", "train_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        for name in ("budget", "trial_budget"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"--{name.replace('_', '-')} must be positive, got {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def small() -> Plan:
    """Under three hours on two cores for five PDEs."""
    return Plan()


def smoke() -> Plan:
    """Seconds a method: for tests."""
    return Plan(trials=2, trial_budget=3_500, budget=4_000, train_steps=5, samples=8, real=32, training=16, validation=8)


def paper() -> Plan:
    """128x128 on GPUs, base models of one's own (``--base``)."""
    return Plan(
        resolution=128, trials=8, trial_budget=400_000, budget=2_000_000, samples=1600, validation=256, training=8192, threads=4
    )


PLANS: dict[str, Callable[[], Plan]] = {"smoke": smoke, "small": small, "paper": paper}
