"""The parts of an update by name, and the checks that they fit together."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from envs.common.checks import ConfigError, require
from envs.common.parts import PartSettings
from envs.rewards import Reward
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.credit import CREDITS, Credit
from pirf_ray.learning.losses import Context
from pirf_ray.learning.objectives import OBJECTIVES, Objective
from pirf_ray.learning.regularizers import REGULARIZERS, Regularizer


@dataclass(frozen=True, kw_only=True)
class Parts:
    """The parts of an update."""

    objective: Objective
    credit: Credit
    regularizers: Sequence[Regularizer]

    def advance(self, policies: Policies, update: int) -> None:
        """Let objective and regularizers follow an update of the weights."""
        self.objective.advance(policies, update)
        for regularizer in self.regularizers:
            regularizer.advance(policies, update)


@dataclass(frozen=True, kw_only=True)
class PartChoices:
    """Names and settings of the parts of an update."""

    objective: str
    """Name of the objective."""
    objective_settings: PartSettings
    """Settings of the objective."""
    credit: str = ""
    """Name of the credit. Empty: the objective's own."""
    credit_settings: PartSettings = field(default_factory=PartSettings)
    """Settings of the credit."""
    regularizers: tuple[str, ...] = ()
    """Names of the regularizers."""
    regularizer_settings: PartSettings = field(default_factory=PartSettings)
    """Settings of all regularizers."""

    def make(self, context: Context) -> Parts:
        """Return the parts."""
        return Parts(
            objective=OBJECTIVES.make(self.objective, self.objective_settings, context),
            credit=CREDITS.make(self.credit or OBJECTIVES.find(self.objective).credit, self.credit_settings, context),
            regularizers=[REGULARIZERS.make(name, self.regularizer_settings, context) for name in self.regularizers],
        )


def check_reward(objective: Objective, reward: Reward, names: tuple[str, str]) -> None:
    """Raise ConfigError, in one sentence, if an objective cannot use a reward. ``names``: of objective and reward."""
    if objective.needs_gradient and not reward.differentiable:
        able = ", ".join(sorted(name for name, cls in OBJECTIVES.items() if not cls.needs_gradient))
        raise ConfigError(
            f"--objective {names[0]} differentiates the reward, but --reward {names[1]} has no gradient; "
            f"objectives that need none: {able or 'none is registered'}"
        )


def check_groups(objective: Objective, credit: Credit, *, group: int, micro_batch: int, names: tuple[str, str]) -> None:
    """Raise ConfigError if groups are too small, or if a coupled loss would see only a part of a group."""
    require(group >= credit.min_group, f"--group must be at least {credit.min_group} for --credit {names[1]}, got {group}")
    least = objective.min_group
    require(group >= least, f"--group must be at least {least} for --objective {names[0]}, got {group}")
    multiple = objective.group_multiple
    require(group % multiple == 0, f"--group must be a multiple of {multiple} for --objective {names[0]}, got {group}")
    if objective.coupled:
        require(
            micro_batch % group == 0,
            f"--micro-batch must be a multiple of --group {group} for --objective {names[0]}, got {micro_batch}",
        )
