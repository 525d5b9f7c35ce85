"""Settings of a fine-tuning run: typed, frozen, checked before anything starts. Every field is a command-line flag."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from envs.denoising import Solver
from envs.rewards import RewardForm


class ConfigError(ValueError):
    """A setting that cannot work; the message names the flag, what was given and what is allowed."""


class LearnerFailed(RuntimeError):
    """The learner failed for good; the message names the last good checkpoint. ``errno``: of the disk, if that refused."""

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


def _require_each(settings: object, names: tuple[str, ...], rule: str, holds: Callable[[float], bool]) -> None:
    """``rule`` is said of the flag of each named field, and ``holds`` checks its value."""
    for name in names:
        value = getattr(settings, name)
        _require(holds(value), f"--{name.replace('_', '-')} must {rule}, got {value}")


def _positive(settings: object, *names: str) -> None:
    _require_each(settings, names, "be positive", lambda value: value > 0)


def _not_negative(settings: object, *names: str) -> None:
    _require_each(settings, names, "not be negative", lambda value: value >= 0)


def _at_least(settings: object, least: int, *names: str) -> None:
    _require_each(settings, names, f"be at least {least}", lambda value: value >= least)


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """The sampler whose samples are made physical."""

    num_steps: int = 20
    """N, steps of the sampler. Heun spends 2N-1 network evaluations."""
    solver: Solver = "heun"
    """Order of the sampler's steps: heun (2) or euler (1)."""
    corrections: int = 0
    """Steps down each finished sample's own residual, after the tuned model's last: no network evaluation, a residual gradient each."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "num_steps")
        _not_negative(self, "corrections")


@dataclass(frozen=True, kw_only=True)
class PirfSettings:
    """What PIRF rewards, and through what it backpropagates."""

    truncation: int = 4
    """K, the last steps of the sampler that carry gradient: 1 <= K <= N."""
    scope: Literal["tail", "all"] = "tail"
    """Where the tuned weights act: in the last K steps with the base model before them (tail), or at every sigma (all, the paper's)."""
    levels: int = 0
    """Layer-wise truncation: this many top decoder levels learn, with the output layer. 0: all layers learn."""
    layer_mode: Literal["freeze", "truncate"] = "freeze"
    """Below the learning levels: frozen with exact gradient through them (freeze), or gradient cut at their border (truncate)."""
    reward_form: RewardForm = "log"
    """plain: -r. log: -log(r + r_ref). saturating: -r / (r + r_ref). None gains below the data floor."""
    objective: str = "pathwise"
    """How the rewarded samples come from the prefixes: pathwise (PIRF, DRaFT-K), draft-lv, alignprop, reft; your own: module:name."""
    lora_rank: int = 0
    """Learn low-rank changes of this rank (LoRA) instead of whole weights. 0: whole weights."""
    operator: str = ""
    """Residual operator that is rewarded; empty: the PDE's default, consistent."""
    reference_noise: float = 3e-4
    """Noise (model units) on exact data whose residual is r_ref: where the log and saturating rewards flatten out."""
    condition_weight: float = 0.1
    """Weight of the conditions (wall, initial condition, ...) beside the residual's weight of 1, times the PDE's factor for each."""
    weights: dict[str, float] = field(default_factory=dict)
    """Weights of single reward terms, by name, instead of theirs by --condition-weight: --weights wall 0.3 conservation 0."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "truncation")
        _require(self.levels >= 0, f"--levels must be 0 (all layers) or more, got {self.levels}")
        _positive(self, "reference_noise")
        _not_negative(self, "condition_weight", "lora_rank")
        for name, weight in self.weights.items():
            _require(weight >= 0, f"--weights: {name} must not be negative, got {weight}")


@dataclass(frozen=True, kw_only=True)
class RegularizationSettings:
    """What holds the tuned model to the pretrained one."""

    l2: float = 0.0
    """lambda of lambda * sum ||theta - theta_0||^2 over the learning weights, theta_0 the pretrained ones."""
    anchor: float = 300.0
    """mu of mu * ||LP(x_0 - x_0^base)||^2 / ||x_0^base||^2, LP a 4x4 average, x_0^base the base model's output from the same prefix."""

    anchor_inputs: float = 1.0
    """Factor on mu for the channels that the equation takes as given (source, coefficient), which are held at all scales."""

    def __post_init__(self) -> None:
        _not_negative(self, "l2", "anchor", "anchor_inputs")


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """How the weights are updated."""

    updates: int = 100
    """Updates of the weights in all."""
    batch: int = 16
    """Samples an update, over all learner workers."""
    micro_batch: int = 16
    """Samples replayed at once; larger batches accumulate their gradient."""
    learning_rate: float = 2e-4
    """Learning rate of Adam at the first update: no ramp."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate after it: constant, or down to zero at the last update by half a cosine."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; longer ones are scaled down."""
    ema_decay: float = 0.9
    """Decay of the moving average of the learning weights; the average is what is evaluated and kept."""
    max_skipped: int = 10
    """Updates with a non-finite gradient that are skipped before the run stops."""

    def __post_init__(self) -> None:
        _positive(self, "updates", "batch", "micro_batch", "learning_rate", "clip_norm")
        _require(0 <= self.ema_decay < 1, f"--ema-decay must be in [0, 1), got {self.ema_decay}")
        _not_negative(self, "max_skipped")


@dataclass(frozen=True, kw_only=True)
class RolloutSettings:
    """Who makes the prefixes (the steps before the last K), and how often one is used."""

    actors: int = 2
    """Rollout actors."""
    actor_cpus: float = 0.5
    """CPUs that Ray reserves for each actor; fractions share a core."""
    actor_gpus: float = 0.0
    """GPUs that Ray reserves for each actor; fractions share a GPU."""
    actor_threads: int = 1
    """Torch threads of an actor. Fixed, since it changes rounding."""
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
    """Prefixes added an update, the oldest ones leaving once the pool is full."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "actors", "actor_threads", "chunk", "reuse", "pool", "pool_start")
        _not_negative(self, "actor_cpus", "actor_gpus", "staleness", "pool_growth")


@dataclass(frozen=True, kw_only=True)
class LearnerSettings:
    """Where the learner runs."""

    workers: int = 1
    """Ray Train workers; each takes an equal share of the batch."""
    worker_cpus: float = 0.5
    """CPUs that Ray reserves for each worker."""
    worker_gpus: float = 0.0
    """GPUs that Ray reserves for each worker."""
    worker_threads: int = 2
    """Torch threads of a worker. Fixed, since it changes rounding."""
    checkpoint_every: int = 20
    """Updates between checkpoints."""
    max_failures: int = 3
    """Times the learner may be restarted after a lost worker."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "workers", "worker_threads", "checkpoint_every")
        _not_negative(self, "worker_cpus", "worker_gpus", "max_failures")


@dataclass(frozen=True, kw_only=True)
class GuardSettings:
    """The fidelity guard: samples from seeds of their own against held-out solver data, while training goes on."""

    guard: Literal["enforce", "watch", "off"] = "enforce"
    """enforce: the best model inside the limits is kept, and training ends outside them. watch: measured, the last model is kept.
    off: not measured, the last model is kept."""
    guard_samples: int = 64
    """Samples of a guard evaluation."""
    guard_every: int = 10
    """Updates between guard evaluations."""
    guard_amplitude: float = 0.02
    """Largest relative change of a channel's standard deviation against the base model's on the same noise."""
    guard_energy: float = 1.05
    """Largest energy distance to held-out data over the base model's on the same noise."""
    guard_spectrum: float = 0.1
    """Largest rise of a channel's log spectrum error against held-out data (decades) over the base model's on the same noise."""
    guard_patience: int = 2
    """Guard evaluations in a row outside the limits that end the training."""

    def __post_init__(self) -> None:
        _at_least(self, 2, "guard_samples")
        _at_least(self, 1, "guard_every")
        _positive(self, "guard_amplitude", "guard_energy", "guard_spectrum")
        _at_least(self, 1, "guard_patience")


@dataclass(frozen=True, kw_only=True)
class EvaluationSettings:
    """The final evaluation."""

    samples: int = 256
    """Samples of the base and of the tuned model, from the same noise."""
    real: int = 1024
    """Held-out solver samples that they are compared with."""

    def __post_init__(self) -> None:
        _at_least(self, 2, "samples", "real")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run's figures. Saved as config.json; resuming compares it."""

    env: str = "Burgers-v0"
    """The PDE, as registered with Gymnasium."""
    resolution: int = 32
    """Rows and columns of the fields; the base model must have the same."""
    seed: int = 0
    """Seed of noise, batches and evaluation."""
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    pirf: PirfSettings = field(default_factory=PirfSettings)
    regularization: RegularizationSettings = field(default_factory=RegularizationSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        k, n = self.pirf.truncation, self.sampler.num_steps
        _require(k <= n, f"--truncation must be in [1, {n}] (the sampler's steps), got {k}")
        _not_negative(self, "seed")
        r, batch, workers = self.rollout, self.optimizer.batch, self.learner.workers
        _require(batch % r.chunk == 0, f"--batch must be a multiple of --chunk {r.chunk}, got {batch}")
        _require(
            (batch // r.chunk) % workers == 0,
            f"--batch must be a multiple of --chunk x --workers = {r.chunk * workers}, got {batch}",
        )
        if r.strategy == "pool":
            _require(
                self.pirf.scope == "tail", "--strategy pool needs --scope tail: with scope all a prefix goes stale; use fresh"
            )
            _require(
                r.reuse == 1 and r.staleness == 0, "--reuse and --staleness belong to --strategy fresh; a pool is never stale"
            )
            _require(r.pool_start >= batch, f"--pool-start must be at least --batch {batch}, got {r.pool_start}")
            _require(r.pool >= batch, f"--pool must be at least --batch {batch}, got {r.pool}")
        else:
            _require(
                r.staleness >= r.reuse - 1,
                f"--staleness must be at least --reuse - 1 = {r.reuse - 1} (the last of M updates is M-1 newer), got {r.staleness}",
            )

    @property
    def prefix_steps(self) -> int:
        """Steps before the last K."""
        return self.sampler.num_steps - self.pirf.truncation

    def with_settings(self, **settings: Any) -> "TrainConfig":
        """With some settings changed, named as on the command line, of whatever group. ValueError on an unknown one."""
        changes: dict[str, Any] = {}  # replaced together: settings of two groups may fit only each other
        for group in fields(self):
            value = getattr(self, group.name)
            known = {f.name for f in fields(value)} if is_dataclass(value) else set()
            chosen = {name: settings.pop(name) for name in known & settings.keys()}
            if chosen:
                changes[group.name] = replace(value, **chosen)
            elif group.name in settings:
                changes[group.name] = settings.pop(group.name)
        if settings:
            raise ValueError(f"unknown settings: {', '.join(sorted(settings))}")
        return replace(self, **changes)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class RunPaths:
    """The run directory."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "config.json"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def samples(self) -> Path:
        return self.root / "samples.h5"

    @property
    def result(self) -> Path:
        return self.root / "result.json"

    @property
    def outcome(self) -> Path:
        return self.root / "outcome.json"

    @property
    def report(self) -> Path:
        return self.root / "report.png"
