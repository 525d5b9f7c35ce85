"""Rewards by the text of ``--reward``: a registered name, ``module:name`` of a user's module, or ``command:PROGRAM ARGS...``."""

import inspect
import shlex
import sys
from typing import Any

from envs.common.checks import ConfigError
from envs.common.parts import PartSettings, settings_of
from envs.common.registry import imported_name, unknown
from envs.pdes import PDE
from envs.rewards.base import REWARDS, Reward, register
from envs.rewards.command import CommandReward, CommandSettings
from envs.rewards.functions import Checked
from envs.rewards.physics import PhysicsReward, RewardSettings

COMMAND = "command:"
"""Prefix of a reward that is a program."""


@register("physics")
class PDEReward(PhysicsReward):
    """The residual and the conditions of the PDE, weighted by the settings."""

    Settings = RewardSettings

    def __init__(self, settings: RewardSettings, pde: PDE) -> None:
        """Make the reward of a PDE. ConfigError names an operator or a term that the PDE does not have."""
        settings.check(pde)
        made = settings.make(pde)
        super().__init__(made.terms, made.form)


def find_reward(text: str, pde: PDE, settings: PartSettings | None = None) -> Reward:
    """Return the reward that a text names.

    =========================  ========================================================================================
    text                       reward
    =========================  ========================================================================================
    ``name``                   the registered reward, made with (settings, pde)
    ``module:name``            imports the module; the reward that it registers under the name, or else its attribute: a
                               reward, or a class that is made with (pde)
    ``command:PROGRAM ARGS``   a program in another process (envs.rewards.command)
    =========================  ========================================================================================

    ``settings``: settings of the reward, alone or merged with the settings of other parts. TypeError, which names the
    protocol, if the object is not a reward. ValueError names the known rewards.
    """
    if text.startswith(COMMAND):
        own = settings if settings is None or isinstance(settings, CommandSettings) else settings.cast(CommandSettings)
        return CommandReward.with_settings(_words(text), own or CommandSettings(), pde)
    plain = imported_name(text, REWARDS.flag)
    made: Any = REWARDS.make(plain, settings, pde) if plain in REWARDS else _attribute(text, plain, pde)
    return made if isinstance(made, PhysicsReward) else Checked(made, text)


def reward_settings(text: str) -> type[PartSettings]:
    """Return the class of the settings that ``find_reward`` takes for a text. ValueError names the known rewards."""
    if text.startswith(COMMAND):
        return CommandSettings
    plain = imported_name(text, REWARDS.flag)
    if plain in REWARDS:
        return settings_of(REWARDS[plain])
    _named(text, plain)
    return PartSettings


def _words(text: str) -> list[str]:
    """Return the words of a command, split like a shell splits them."""
    try:
        return shlex.split(text.removeprefix(COMMAND))
    except ValueError as error:
        raise ConfigError(f"--{REWARDS.flag} {text}: {error}") from None


def _named(text: str, plain: str) -> Any:
    """Return the attribute that ``module:name`` names. ValueError if there is none."""
    module = sys.modules.get(text.rpartition(":")[0])
    if module is None or not hasattr(module, plain):
        raise ValueError(
            f"--{REWARDS.flag}: {unknown(REWARDS.kind, text, REWARDS)}; your own: module:name, or {COMMAND}PROGRAM ARGS..."
        )
    return getattr(module, plain)


def _attribute(text: str, plain: str, pde: PDE) -> Any:
    """Return the attribute that ``module:name`` names. A class is made with (pde)."""
    found = _named(text, plain)
    if not isinstance(found, type):
        return found
    try:
        inspect.signature(found).bind(pde)
    except TypeError:
        raise TypeError(f"reward {text!r}: a class that is not registered is made with (pde), got {found}") from None
    return found(pde)
