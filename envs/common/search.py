"""Search ranges of a parameter, in the form of the command line: ``4``, ``1,2,4``, ``1e-4:1e1``, ``0.5:0.99:linear``.

This module does not use Optuna. ``pirf_ray.comparison.tuning.suggest`` draws values of a range with Optuna.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from envs.common.checks import ConfigError, flag

Value = int | float | str


class Spec(Protocol):
    """The values that a search may give to a parameter. ``str`` returns the form of the command line."""

    @property
    def fixed(self) -> bool:
        """Whether the parameter has a single value."""
        ...

    def holds(self, value: Value) -> bool:
        """Return whether the parameter may have this value."""
        ...

    def ends(self) -> tuple[Value, ...]:
        """Return the values at which settings are checked together: all choices, or both ends of a range."""
        ...


@dataclass(frozen=True)
class Choice:
    """A list of values. A single value is fixed and is not searched."""

    values: tuple[Value, ...]

    @property
    def fixed(self) -> bool:
        """Whether the list has a single value."""
        return len(self.values) == 1

    def holds(self, value: Value) -> bool:
        """Return whether the value is in the list."""
        return value in self.values

    def ends(self) -> tuple[Value, ...]:
        """Return all values."""
        return self.values

    def __str__(self) -> str:
        return ",".join(map(_text, self.values))


@dataclass(frozen=True)
class Range:
    """An interval of numbers with both ends, searched uniformly in the logarithm or in the number."""

    low: float
    high: float
    log: bool = True
    """Whether the search is uniform in the logarithm."""
    whole: bool = False
    """Whether the values are whole numbers."""

    @property
    def fixed(self) -> bool:
        """Whether the interval has a single value: never."""
        return False

    def holds(self, value: Value) -> bool:
        """Return whether the value is a number in the interval, and a whole number if the interval has whole numbers."""
        return not isinstance(value, str) and self.low <= value <= self.high and (not self.whole or value == int(value))

    def ends(self) -> tuple[Value, ...]:
        """Return both ends."""
        kind: Callable[[float], Value] = int if self.whole else float
        return kind(self.low), kind(self.high)

    def __str__(self) -> str:
        return f"{_text(self.low)}:{_text(self.high)}" + ("" if self.log else ":linear")


def parse_spec(name: str, text: str, kind: type) -> Spec:
    """Return the spec that a text describes, of values of the type ``kind`` (int, float or str). ConfigError names the flag."""
    named = flag(name)
    text = text.strip()
    if ":" in text and kind is not str:
        return _range(named, text, kind)
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise ConfigError(f"{named} needs values like 1,2,4 or a range like 1e-4:1e1, got {text!r}")
    values = tuple(_value(named, part, kind) for part in parts)
    if len(set(values)) < len(values):
        raise ConfigError(f"{named} names a value twice: {text}")
    return Choice(values)


def _range(named: str, text: str, kind: type) -> Range:
    low_text, high_text, *rest = (part.strip() for part in text.split(":"))
    if rest not in ([], ["log"], ["linear"]):
        raise ConfigError(f"{named} needs a range low:high, or low:high:linear, got {text!r}")
    low, high = _value(named, low_text, kind), _value(named, high_text, kind)
    log = rest != ["linear"]
    if not (isinstance(low, int | float) and isinstance(high, int | float) and low < high):
        raise ConfigError(f"{named} needs a range whose low end is below its high end, got {text!r}")
    if log and low <= 0:
        linear = f"{low_text}:{high_text}:linear"
        raise ConfigError(f"{named} {text}: a logarithmic range must begin above 0; for a linear one write {linear}")
    return Range(low, high, log=log, whole=kind is int)


def _value(named: str, text: str, kind: type) -> Value:
    if kind is str:
        return text
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or (kind is int and number != int(number)):
        raise ConfigError(f"{named} needs {'whole ' if kind is int else ''}numbers, got {text!r}")
    return int(number) if kind is int else number


def _text(value: Value) -> str:
    """Return the shortest text that ``_value`` reads as the same value."""
    short = f"{value:g}" if isinstance(value, float) else str(value)
    return short if not isinstance(value, float) or float(short) == value else repr(value)
