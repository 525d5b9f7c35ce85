"""Checks of settings. A setting that cannot work is a ConfigError that names its flag, what was given and what is allowed."""

from collections.abc import Callable


class ConfigError(ValueError):
    """A setting that cannot work; the message names the flag, what was given and what is allowed."""


def flag(name: str) -> str:
    """Return the command-line flag of a setting: ``num_steps`` is ``--num-steps``."""
    return f"--{name.replace('_', '-')}"


def require(holds: bool, message: str) -> None:
    """Raise ConfigError with the message unless ``holds``."""
    if not holds:
        raise ConfigError(message)


def require_each(settings: object, names: tuple[str, ...], rule: str, holds: Callable[[float], bool]) -> None:
    """Check each named field with ``holds``; the message says that its flag must ``rule``."""
    for name in names:
        value = getattr(settings, name)
        require(holds(value), f"{flag(name)} must {rule}, got {value}")


def positive(settings: object, *names: str) -> None:
    """Require that each named field is positive."""
    require_each(settings, names, "be positive", lambda value: value > 0)


def not_negative(settings: object, *names: str) -> None:
    """Require that no named field is negative."""
    require_each(settings, names, "not be negative", lambda value: value >= 0)


def at_least(settings: object, least: int, *names: str) -> None:
    """Require that each named field is at least ``least``."""
    require_each(settings, names, f"be at least {least}", lambda value: value >= least)
