"""Checks of settings. They raise ConfigError, whose message names the flag, the given value and the allowed values."""

from collections.abc import Callable


class ConfigError(ValueError):
    """An error about a setting that cannot work. Its message names the flag, the given value and the allowed values."""


def flag(name: str) -> str:
    """Return the command-line flag of a setting: ``num_steps`` is ``--num-steps``."""
    return f"--{name.replace('_', '-')}"


def require(holds: bool, message: str) -> None:
    """Raise ConfigError with the message unless ``holds``."""
    if not holds:
        raise ConfigError(message)


def require_each(settings: object, names: tuple[str, ...], rule: str, holds: Callable[[float], bool]) -> None:
    """Raise ConfigError unless every named field passes ``holds``. The message reads ``--flag must RULE, got VALUE``."""
    for name in names:
        value = getattr(settings, name)
        require(holds(value), f"{flag(name)} must {rule}, got {value}")


def positive(settings: object, *names: str) -> None:
    """Raise ConfigError unless each named field is positive."""
    require_each(settings, names, "be positive", lambda value: value > 0)


def not_negative(settings: object, *names: str) -> None:
    """Raise ConfigError if a named field is negative."""
    require_each(settings, names, "not be negative", lambda value: value >= 0)


def at_least(settings: object, least: int, *names: str) -> None:
    """Raise ConfigError unless each named field is at least ``least``."""
    require_each(settings, names, f"be at least {least}", lambda value: value >= least)
