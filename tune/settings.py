"""Settings of a sweep: typed, frozen, checked before anything starts. Every field is a command-line flag."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from envs.common.checks import at_least, not_negative, positive, require
from pirf_ray.training.presets import DEFAULT_PRESET
from tune.goals import Goal

Mode = Literal["in-process", "distributed"]
"""How a trial runs."""
AskedMode = Literal["auto", "in-process", "distributed"]
"""How the user wants trials to run."""


@dataclass(frozen=True, kw_only=True)
class Space:
    """The search space. Each flag takes a value (4), a list (1,2,4), a range (1e-4:1e1, logarithmic) or low:high:linear."""

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
    """Treatment of the layers below the learning levels: freeze, truncate."""
    reuse: str = ""
    """M, updates that a prefix serves; in a pool on average."""
    vary: dict[str, str] = field(default_factory=dict)
    """Any other setting of a run: --vary updates 60 ema-decay 0.9,0.95 guard-every 10."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Search the settings of fine-tuning. The first trial is the preset; hopeless trials are stopped early.

    The study is in DIR/study.db, which optuna-dashboard shows. `python -m tune.report DIR` draws it.
    """

    preset: str = DEFAULT_PRESET
    """smoke, small or paper: the run around which the sweep searches."""
    env: str = "Burgers-v0"
    """The PDE."""
    num_trials: int | None = None
    """Trials of this sweep in all, stopped and failed ones included; default: 20, or the number of a resumed sweep."""
    goal: Goal = "residual"
    """residual: the lowest inside the guard's limits. fidelity: the lowest energy distance under --residual-limit. frontier: both."""
    out: Path | None = None
    """Directory of the sweep; default: sweeps/<env>-<date>-<time>."""
    resume: Path | None = None
    """Continue this sweep instead, with its own settings; unfinished trials continue from their newest checkpoint."""
    base: Path | None = None
    """Base model, whose resolution the runs have; default: the one that ships."""
    regularizer: Literal["", "anchor", "l2"] = ""
    """Setting that --regularization searches; default: anchor (mu) if the preset has one, else l2 (lambda)."""
    residual_limit: float = 0.1
    """Goal fidelity: largest residual over the base model's."""
    storage: str | None = None
    """Any Optuna storage URL, for several sweeps on one study; never written to a file. Default: DIR/study.db."""
    study: str | None = None
    """Name of the study; default: <env>-<preset>-<goal>."""
    seed: int = 0
    """Seed of the search; the runs' seed is the preset's (--vary seed 1)."""
    samples: int = 128
    """Samples of a finished trial from which its metrics are measured."""
    real: int = 1024
    """Held-out solver samples that they are compared with."""
    asha: bool = True
    """Stop hopeless trials early, by the residual that they would keep."""
    mode: AskedMode = "auto"
    """in-process: a trial is one process. distributed: it has rollout actors and learner workers of its own. auto: distributed
    if the preset asks for GPUs."""
    trial_cpus: float = 1.0
    """CPUs, and threads, of an in-process trial."""
    trial_gpus: float = 0.0
    """GPUs of an in-process trial; fractions share one."""
    at_once: int | None = None
    """Trials at once; default: as many as the cluster has room for."""
    test: int = 256
    """Samples, of noise that no trial has seen, on which the best trial and the preset are compared at the end; 0: no comparison."""
    address: str | None = None
    """Ray cluster to join (or RAY_ADDRESS); default: start Ray on this machine."""
    space: Space = field(default_factory=Space)

    def __post_init__(self) -> None:
        at_least(self, 2, "samples", "real")
        at_least(self, 1, *(name for name in ("num_trials", "at_once") if getattr(self, name) is not None))
        positive(self, "trial_cpus", "residual_limit")
        not_negative(self, "trial_gpus", "seed", "test")
        require(self.test != 1, "--test must be 0 or at least 2, got 1")
