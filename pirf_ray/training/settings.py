"""Settings of a fine-tuning run: a table of contents of the parts' own settings. Every field is a command-line flag."""

from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from envs.common.checks import at_least, not_negative, require
from envs.denoising import DenoisingProcess
from envs.rewards import RewardSettings
from pirf_ray.diffusion.policy import PolicySettings
from pirf_ray.diffusion.sampling import SamplerSettings
from pirf_ray.learning.learner import LearningSettings, OptimizerSettings
from pirf_ray.learning.parameters.base import ParameterSettings
from pirf_ray.learning.regularizers.base import RegularizationSettings
from pirf_ray.learning.rollouts.plan import RolloutPlan, RolloutSettings, make_plan
from pirf_ray.learning.rollouts.prefixes import PrefixTask
from pirf_ray.steering.correction import CorrectionSettings
from pirf_ray.training.guard import GuardSettings


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


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run's results. Saved as config.json; resuming compares it."""

    env: str = "Burgers-v0"
    """The PDE, as registered with Gymnasium."""
    resolution: int = 32
    """Rows and columns of the fields; the base model must have the same."""
    seed: int = 0
    """Seed of noise, batches and evaluation."""
    objective: str = "pathwise"
    """How the rewarded samples come from the prefixes: pathwise (PIRF, DRaFT-K), draft-lv, alignprop, reft; your own: module:name."""
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    correction: CorrectionSettings = field(default_factory=CorrectionSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    parameters: ParameterSettings = field(default_factory=ParameterSettings)
    reward: RewardSettings = field(default_factory=RewardSettings)
    regularization: RegularizationSettings = field(default_factory=RegularizationSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    actor: ActorSettings = field(default_factory=ActorSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        k, n = self.policy.truncation, self.sampler.num_steps
        require(k <= n, f"--truncation must be in [1, {n}] (the sampler's steps), got {k}")
        not_negative(self, "seed")
        self.rollout.check(batch=self.optimizer.batch, workers=self.learner.workers, scope=self.policy.scope)

    @property
    def prefix_steps(self) -> int:
        """Return the number of steps before the last K."""
        return self.sampler.num_steps - self.policy.truncation

    @property
    def process(self) -> DenoisingProcess:
        """Return the denoising process of the sampler."""
        return self.sampler.process()

    @property
    def learning(self) -> LearningSettings:
        """Return the learner's settings."""
        return LearningSettings(
            objective=self.objective,
            policy=self.policy,
            parameters=self.parameters,
            regularization=self.regularization,
            optimizer=self.optimizer,
            seed=self.seed,
        )

    def plan(self) -> RolloutPlan:
        """Return the rollout plan."""
        fixed = self.policy.scope == "tail"
        return make_plan(self.rollout, batch=self.optimizer.batch, fixed=fixed, seed=self.seed)

    def prefix_task(self, parameters: dict[str, float]) -> PrefixTask:
        """Return what the makers of prefixes must know, for a PDE with these parameters."""
        return PrefixTask(
            env=self.env,
            resolution=self.resolution,
            sampler=self.sampler,
            stop_step=self.prefix_steps,
            seed=self.seed,
            chunk=self.rollout.chunk,
            with_base_output=self.regularization.anchor > 0,
            parameters=parameters,
        )

    def with_settings(self, **settings: Any) -> "TrainConfig":
        """Return the config with some settings changed, of whatever group, named as flags. ValueError on an unknown setting."""
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
        """Return the settings by group, as config.json holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TrainConfig":
        """Read config.json. Settings are known by their own names, so files with other groups are read as well."""
        settings: dict[str, Any] = {}
        for name, value in data.items():
            settings |= value if isinstance(value, dict) else {name: value}
        return cls().with_settings(**settings)
