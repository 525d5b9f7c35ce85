"""Settings of a fine-tuning run: a table of contents of the parts' own settings. Every field is a command-line flag."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any

from envs.common.checks import not_negative, require
from envs.common.parts import PartSettings, merged_settings, settings_of
from envs.common.registry import named_modules
from envs.denoising import DenoisingProcess
from envs.pdes import PDE
from envs.rewards import Reward, RewardSettings, find_reward, located, reward_settings
from envs.rewards.finding import COMMAND
from pirf_ray.diffusion.policy import PolicySettings
from pirf_ray.diffusion.sampling import SamplerSettings
from pirf_ray.learning.credit import CREDITS
from pirf_ray.learning.learner import LearningSettings
from pirf_ray.learning.objectives import OBJECTIVES
from pirf_ray.learning.optimization import OptimizerSettings
from pirf_ray.learning.parameters import PARAMETERS
from pirf_ray.learning.parameters.attach import ParameterChoice
from pirf_ray.learning.parts import PartChoices
from pirf_ray.learning.regularizers import REGULARIZERS
from pirf_ray.learning.rollouts import MAKERS, MakerContext
from pirf_ray.learning.rollouts.plan import RolloutPlan, RolloutSettings, make_plan
from pirf_ray.learning.rollouts.records import Rollouts
from pirf_ray.learning.rollouts.sources import RolloutTask
from pirf_ray.steering.correction import CorrectionSettings
from pirf_ray.training.guard import GuardSettings
from pirf_ray.training.resources import ActorSettings, EvaluationSettings, LearnerSettings

CHOICES = ("reward", "objective", "maker", "credit", "parameters", "regularizers")
"""Settings that name parts. The settings of the chosen parts stand in ``NAME_settings``."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run's results. Saved as config.json; resuming compares it."""

    env: str = "Burgers-v0"
    """The PDE, as registered with Gymnasium."""
    resolution: int = 32
    """Rows and columns of the fields; the base model must have the same."""
    seed: int = 0
    """Seed of noise, batches and evaluation."""
    reward: str = "physics"
    """Reward: physics, or another registered name; your own: module:name, or command:PROGRAM for another process."""
    objective: str = "pathwise"
    """Mathematics of an update: pathwise (PIRF, DRaFT-K), policy-gradient, preference, ... (--list objective); your own: module:name."""
    maker: str = ""
    """Kind of rollouts. Empty: the objective's own."""
    credit: str = ""
    """How a reward is shared among samples and steps. Empty: the objective's own."""
    parameters: str = "layers"
    """What learns: layers, low-rank, ... (--list parameters)."""
    regularizers: tuple[str, ...] = ("l2", "anchor")
    """What holds the tuned model near the base model. A strength of 0 switches a regularizer off."""
    reward_settings: PartSettings = field(default_factory=lambda: _default_settings("reward"))
    objective_settings: PartSettings = field(default_factory=lambda: _default_settings("objective"))
    maker_settings: PartSettings = field(default_factory=PartSettings)
    credit_settings: PartSettings = field(default_factory=PartSettings)
    parameters_settings: PartSettings = field(default_factory=lambda: _default_settings("parameters"))
    regularizers_settings: PartSettings = field(default_factory=lambda: _default_settings("regularizers"))
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    correction: CorrectionSettings = field(default_factory=CorrectionSettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    rollout: RolloutSettings = field(default_factory=RolloutSettings)
    actor: ActorSettings = field(default_factory=ActorSettings)
    learner: LearnerSettings = field(default_factory=LearnerSettings)
    guard: GuardSettings = field(default_factory=GuardSettings)
    evaluation: EvaluationSettings = field(default_factory=EvaluationSettings)

    def __post_init__(self) -> None:
        k, n = self.truncation_steps, self.sampler.num_steps
        require(k <= n, f"--truncation must be in [1, {n}] (the sampler's steps), got {k}")
        not_negative(self, "seed")
        makers = OBJECTIVES.find(self.objective).makers
        fits = _kind(self.maker_name) in [_kind(name) for name in makers]
        require(fits, f"--maker {self.maker}: --objective {self.objective} uses rollouts of {', '.join(makers)}")
        for part in CHOICES:
            wanted = _settings_class(part, getattr(self, part), self.objective)
            object.__setattr__(self, f"{part}_settings", _carried(getattr(self, f"{part}_settings"), wanted))
        self.rollout.check(batch=self.optimizer.batch, workers=self.learner.workers, fixed=self.fixed_rollouts)

    @property
    def maker_name(self) -> str:
        """Return the name of the maker of rollouts."""
        return self.maker or OBJECTIVES.find(self.objective).makers[0]

    @property
    def credit_name(self) -> str:
        """Return the name of the credit."""
        return self.credit or OBJECTIVES.find(self.objective).credit

    @property
    def operator(self) -> str:
        """Return the residual operator of a physics reward; empty for the PDE's default operator and for other rewards."""
        return self.reward_settings.operator if isinstance(self.reward_settings, RewardSettings) else ""

    @property
    def fixed_rollouts(self) -> bool:
        """Whether the base model makes every rollout, so that none goes stale."""
        objective, maker = OBJECTIVES.find(self.objective), MAKERS.find(self.maker_name)
        behaviour = objective.behaviour_of(self.objective_settings)
        by_base = behaviour == "base" or (self.policy.scope == "tail" and not maker.rewarded)
        return by_base or not maker.uses_policy

    @property
    def truncation_steps(self) -> int:
        """Return K, the number of last steps that learn."""
        return self.policy.steps(self.sampler.num_steps)

    @property
    def prefix_steps(self) -> int:
        """Return the number of steps before the last K."""
        return self.sampler.num_steps - self.truncation_steps

    @property
    def process(self) -> DenoisingProcess:
        """Return the denoising process of the sampler, for its sigmas and counts."""
        return self.sampler.process()

    @property
    def learning(self) -> LearningSettings:
        """Return the learner's settings."""
        return LearningSettings(
            parts=PartChoices(
                objective=self.objective,
                objective_settings=self.objective_settings,
                credit=self.credit_name,
                credit_settings=self.credit_settings,
                regularizers=self.regularizers,
                regularizer_settings=self.regularizers_settings,
            ),
            policy=self.policy,
            parameters=self.learning_parameters,
            optimizer=self.optimizer,
            seed=self.seed,
        )

    @property
    def learning_parameters(self) -> ParameterChoice:
        """Return the choice of the learning parameters."""
        return ParameterChoice(name=self.parameters, settings=self.parameters_settings)

    def make_reward(self, pde: PDE) -> Reward:
        """Return the reward of a PDE. ValueError, ConfigError or TypeError if it cannot be made."""
        return find_reward(self.reward, pde, self.reward_settings)

    def plan(self) -> RolloutPlan:
        """Return the rollout plan."""
        return make_plan(self.rollout, batch=self.optimizer.batch, fixed=self.fixed_rollouts, seed=self.seed)

    def rollout_task(self, parameters: dict[str, float]) -> RolloutTask:
        """Return what the makers of rollouts must know, for a PDE with these parameters."""
        return RolloutTask(
            env=self.env,
            resolution=self.resolution,
            parameters=parameters,
            sampler=self.sampler,
            policy=self.policy,
            learning=self.learning_parameters,
            maker=self.maker_name,
            maker_settings=self.maker_settings,
            context=MakerContext(stop_step=self.prefix_steps, with_base_output=self.with_base_output),
            reward=self.reward,
            reward_settings=located(self.reward_settings),
            seed=self.seed,
            chunk=self.rollout.chunk,
            group=self.rollout.group,
        )

    @property
    def with_base_output(self) -> bool:
        """Return whether a regularizer needs the base model's output of each prefix."""
        return any(REGULARIZERS.find(name).needs_base_output(self.regularizers_settings) for name in self.regularizers)

    def with_settings(self, **settings: Any) -> "TrainConfig":
        """Return the config with some settings changed, of whatever group, named as flags. ValueError on an unknown setting.

        A changed part brings the defaults of its own settings. Another objective also brings what its rollouts need.
        """
        if settings.get("objective", self.objective) != self.objective:
            settings = {**self._needed(settings["objective"]), **settings}
        changes: dict[str, Any] = {name: settings.pop(name) for name in CHOICES if name in settings}
        objective = changes.get("objective", self.objective)
        for part in CHOICES:
            wanted = _settings_class(part, changes.get(part, getattr(self, part)), objective)
            changes[f"{part}_settings"] = _carried(getattr(self, f"{part}_settings"), wanted)
        for group in fields(self):  # replaced together: settings of two groups may fit only each other
            value = changes.get(group.name, getattr(self, group.name))
            known = {f.name for f in fields(value)} if is_dataclass(value) else set()
            chosen = {name: settings.pop(name) for name in known & settings.keys()}
            if chosen:
                changes[group.name] = replace(value, **chosen)
            elif group.name in settings:
                changes[group.name] = settings.pop(group.name)
        if settings:
            raise ValueError(f"unknown settings: {', '.join(sorted(settings))}")
        return replace(self, **changes)

    def _needed(self, objective: str) -> dict[str, Any]:
        """Return the settings without which an objective cannot run: its rollouts, its noise, its groups."""
        cls = OBJECTIVES.find(objective)
        needed: dict[str, Any] = {"solver": "stochastic"} if cls.stochastic else {}
        if MAKERS.find(cls.makers[0]).rewarded:
            needed |= {"scope": "all", "strategy": "fresh", "truncation": 0, "regularizers": ("l2",)}
        if CREDITS.find(cls.credit).min_group > 1:
            needed["group"] = self.rollout.chunk
        elif cls.min_group > 1:
            needed["group"] = cls.min_group
        return needed

    def to_json(self) -> dict[str, Any]:
        """Return the settings by group, as config.json holds them."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TrainConfig":
        """Read config.json. Settings are known by their own names, so files with other groups are read as well."""
        settings = _without_groups(data)
        if "regularizers" in settings:
            settings["regularizers"] = tuple(settings["regularizers"])
        if not settings.get("lora_rank", 1):  # runs before the choice of parameters wrote rank 0 for whole layers
            del settings["lora_rank"]
        return cls().with_settings(**settings)


def named_parts(data: Mapping[str, Any]) -> list[str]:
    """Return the names of the parts in the data of a config.json, which no check has seen yet."""
    settings = _without_groups(data)
    chosen = [settings.get(name, "") for name in ("env", *CHOICES)]
    return [str(name) for value in chosen for name in (value if isinstance(value, list | tuple) else [value])]


def for_sampling(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data of a config.json without parts of modules that the user did not name and that sampling does not need.

    They trained the model. Its samples need the PDE, the sampler and the learning parameters only.
    """
    kept = dict(data)
    for part in ("reward", "objective", "maker", "credit", "regularizers"):
        names = kept.get(part, "")
        modules = [str(name).rpartition(":")[0] for name in (names if isinstance(names, list | tuple) else [names])]
        if any(module and f"{module}:" != COMMAND and module not in named_modules() for module in modules):
            del kept[part]
            kept.pop(f"{part}_settings", None)
            if part == "objective":  # its own maker and credit have other settings than the default objective's
                for own in ("maker", "credit"):
                    kept.pop(own, None)
                    kept.pop(f"{own}_settings", None)
    return kept


def _without_groups(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting of the data of a config.json by its own name, whatever its group."""
    settings: dict[str, Any] = {}
    for name, value in data.items():
        settings |= value if isinstance(value, dict) else {name: value}
    return settings


def _settings_class(part: str, name: str | tuple[str, ...], objective: str = "pathwise") -> type[PartSettings]:
    """Return the settings class of a chosen part."""
    if part == "reward":
        return reward_settings(str(name))
    if part == "regularizers":
        return merged_settings(REGULARIZERS.find(one) for one in name)
    if part in ("maker", "credit") and not name:
        own = OBJECTIVES.find(objective)
        name = own.makers[0] if part == "maker" else own.credit
    kinds: Mapping[str, Any] = {"objective": OBJECTIVES, "maker": MAKERS, "credit": CREDITS, "parameters": PARAMETERS}
    return settings_of(kinds[part].find(str(name)))


def _kind(maker: str) -> tuple[type[Rollouts], bool]:
    """Return what a maker makes, and whether it carries rewards. An objective takes all makers of the kinds that it names."""
    cls = MAKERS.find(maker)
    return cls.makes, cls.rewarded


def _default_settings(part: str) -> PartSettings:
    """Return the settings of the part that TrainConfig names by default."""
    default: Any = TrainConfig.__dataclass_fields__[part].default
    return _settings_class(part, default)()


def _carried(settings: PartSettings, wanted: type[PartSettings]) -> PartSettings:
    """Return settings of the wanted class, with the values of the same names."""
    if type(settings) is wanted:
        return settings
    names = {f.name for f in fields(wanted)}
    return wanted(**{f.name: getattr(settings, f.name) for f in fields(settings) if f.name in names})
