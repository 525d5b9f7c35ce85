"""Settings of a sweep: typed, frozen, checked before anything starts. Every field is a command-line flag."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from pirf_ray.config import ConfigError
from pirf_ray.presets import DEFAULT_PRESET
from tune.goals import Goal


@dataclass(frozen=True, kw_only=True)
class Space:
    """The search space. Each takes a value (4), a list (1,2,4), a range (1e-4:1e1, logarithmic) or low:high:linear."""

    truncation: str = ""
    """K, the last steps of the sampler that carry gradient."""
    regularization: str = ""
    """Strength of the regularizer."""
    learning_rate: str = ""
    """Learning rate of Adam at the first update."""
    num_steps: str = ""
    """N, steps of the sampler."""
    levels: str = ""
    """Decoder levels that learn; 0: all layers."""
    layer_mode: str = ""
    """Below the learning levels: freeze, truncate."""
    reuse: str = ""
    """M, updates that a prefix serves; in a pool on average."""
    vary: dict[str, str] = field(default_factory=dict)
    """Any other setting of a run: --vary updates 60 ema-decay 0.9,0.95 guard-every 10."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Search the hyper-parameters of fine-tuning. The first trial is the preset; hopeless ones are stopped early.

    The study lies in DIR/study.db, which optuna-dashboard shows; `python -m tune.report DIR` draws it.
    """

    preset: str = DEFAULT_PRESET
    """smoke, small or paper: the run around which is searched."""
    env: str = "Burgers-v0"
    """The PDE."""
    num_trials: int | None = None
    """Trials of this sweep in all, those stopped early or failed included; default: 20, or what a resumed sweep had."""
    goal: Goal = "residual"
    """residual: the lowest inside the guard's limits. fidelity: the lowest energy distance under --residual-limit. frontier: both."""
    out: Path | None = None
    """Directory of the sweep; default: sweeps/<env>-<date>-<time>."""
    resume: Path | None = None
    """Go on with this sweep instead, with its own settings; unfinished trials go on where they were."""
    base: Path | None = None
    """Base model, whose resolution is the runs'; default: the one that ships."""
    regularizer: Literal["", "anchor", "l2"] = ""
    """What --regularization is the strength of; default: anchor (mu) where the preset has one, else l2 (lambda)."""
    residual_limit: float = 0.1
    """Goal fidelity: largest residual over the base model's."""
    storage: str | None = None
    """Any Optuna storage URL, for several sweeps on one study; never written to a file. Default: DIR/study.db."""
    study: str | None = None
    """Name of the study; default: <env>-<preset>-<goal>."""
    seed: int = 0
    """Seed of the search; the runs' seed is the preset's (--vary seed 1)."""
    samples: int = 128
    """Samples of a finished trial that decide about it."""
    real: int = 1024
    """Held-out solver samples that they are compared with."""
    asha: bool = True
    """Stop hopeless trials early, by the residual that they would keep."""
    mode: Literal["auto", "in-process", "distributed"] = "auto"
    """How a trial runs: in one process, or with rollout actors and learner workers of its own (auto: where it asks for GPUs)."""
    trial_cpus: float = 1.0
    """CPUs of an in-process trial, which are its threads too."""
    trial_gpus: float = 0.0
    """GPUs of an in-process trial; fractions share one."""
    at_once: int | None = None
    """Trials at once; default: as many as the cluster has room for."""
    test: int = 256
    """Samples, of noise that no trial has seen, on which best trial and preset are compared in the end; 0: not compared."""
    address: str | None = None
    """Ray cluster to join (or RAY_ADDRESS); default: start Ray on this machine."""
    space: Space = field(default_factory=Space)

    def __post_init__(self) -> None:
        for name in ("samples", "real"):
            if getattr(self, name) < 2:
                raise ConfigError(f"--{name} must be at least 2, got {getattr(self, name)}")
        for name in ("num_trials", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {value}")
        if self.trial_cpus <= 0 or self.trial_gpus < 0 or self.test < 0 or self.test == 1 or self.seed < 0:
            raise ConfigError("--trial-cpus must be positive, --trial-gpus and --seed not negative, --test 0 or at least 2")
