"""Parts: the replaceable pieces of a run, such as rewards and objectives. A part is a class that owns its settings.

>>> from dataclasses import dataclass
>>> from typing import Protocol
>>> class Shape(Protocol):
...     def area(self) -> float: ...
>>> SHAPES = PartRegistry[Shape]("shape", Shape)
>>> @dataclass(frozen=True, kw_only=True)
... class SquareSettings(PartSettings):
...     side: float = 1.0
>>> @SHAPES.register("square")
... class Square:
...     "A square."
...     Settings = SquareSettings
...     def __init__(self, settings: SquareSettings) -> None:
...         self.settings = settings
...     def area(self) -> float:
...         return self.settings.side ** 2
>>> SHAPES.settings("square")
SquareSettings(side=1.0)
>>> SHAPES.make("square", SquareSettings(side=2.0)).area()
4.0
>>> SHAPES.describe()
['square  A square.']
"""

import inspect
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, make_dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

from envs.common.registry import Registry

P = TypeVar("P")
S = TypeVar("S", bound="PartSettings")


@dataclass(frozen=True, kw_only=True)
class PartSettings:
    """Settings of a part. A part without settings has this class itself.

    A part's own settings are a frozen dataclass that inherits from this one. Every field is a command-line flag. A check in
    ``__post_init__`` calls ``super().__post_init__()``, since the settings of several parts may be merged into one class.
    """

    def __post_init__(self) -> None:
        """Check the settings. ConfigError names the flag of a wrong one."""

    def cast(self, kind: type[S]) -> S:
        """Return these settings as settings of one of the merged kinds."""
        return kind(**{f.name: getattr(self, f.name) for f in fields(kind)})

    def to_json(self) -> dict[str, Any]:
        """Return the settings by name."""
        return asdict(self)


def settings_of(part: type) -> type[PartSettings]:
    """Return the settings class of a part."""
    kind: type[PartSettings] = getattr(part, "Settings", PartSettings)
    return kind


def merged_settings(parts: Iterable[type]) -> type[PartSettings]:
    """Return one settings class with the settings of several parts. TypeError if two parts share a name of a setting."""
    kinds = dict.fromkeys(settings_of(part) for part in parts)
    return _merged(tuple(kind for kind in kinds if kind is not PartSettings))


@lru_cache
def _merged(kinds: tuple[type[PartSettings], ...]) -> type[PartSettings]:
    names = [f.name for kind in kinds for f in fields(kind)]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise TypeError(f"two parts have a setting {', '.join(twice)}")
    if len(kinds) <= 1:
        return kinds[0] if kinds else PartSettings
    title = "".join(kind.__name__.removesuffix("Settings") for kind in kinds) + "Settings"
    made = make_dataclass(title, [], bases=kinds, namespace={"__reduce__": _reduced, "kinds": kinds}, frozen=True, kw_only=True)
    made.__doc__ = " ".join(inspect.getdoc(kind) or "" for kind in kinds)
    return cast(type[PartSettings], made)


def _reduced(settings: Any) -> tuple[Any, ...]:
    """Return how pickle makes merged settings again: no module holds their class."""
    return _made_again, (settings.kinds, {f.name: getattr(settings, f.name) for f in fields(settings)})


def _made_again(kinds: tuple[type[PartSettings], ...], values: dict[str, Any]) -> PartSettings:
    return _merged(kinds)(**values)


def members(protocol: type) -> list[str]:
    """Return the names that a protocol asks for: annotated attributes and functions without a body of their own."""
    annotated = [name for cls in reversed(protocol.__mro__) for name in vars(cls).get("__annotations__", {})]
    functions = [
        name
        for name, value in vars(protocol).items()
        if (inspect.isfunction(value) or isinstance(value, property)) and (name == "__call__" or not name.startswith("_"))
    ]
    optional: tuple[str, ...] = getattr(protocol, "OPTIONAL", ())
    return [name for name in dict.fromkeys([*annotated, *functions]) if name not in ("OPTIONAL", *optional)]


def require_protocol(part: object, protocol: type, what: str) -> None:
    """Raise TypeError, which names the protocol, if an object lacks one of its members."""
    missing = [name for name in members(protocol) if name != "__call__" and not hasattr(part, name)]
    if "__call__" in members(protocol) and not callable(part):
        missing.append("__call__")
    if missing:
        raise TypeError(
            f"{what} must be a {protocol.__name__} ({protocol.__module__}.{protocol.__name__}), "
            f"got {type(part).__name__} without {', '.join(missing)}"
        )


class PartRegistry(Registry[type[P]], Generic[P]):
    """A registry of part classes of one kind, with their settings, their protocol and a line about each."""

    def __init__(self, kind: str, protocol: type, *, flag: str = "") -> None:
        super().__init__(kind, flag=flag)
        self.protocol = protocol

    def settings(self, name: str) -> PartSettings:
        """Return the default settings of a part. ValueError names the known parts."""
        return settings_of(self.find(name))()

    def make(self, name: str, settings: PartSettings | None = None, *arguments: Any) -> P:
        """Return the part with its settings. ``arguments``: further arguments of the kind's constructor.

        TypeError if the class does not make a part of the kind.
        """
        cls: Any = self.find(name)  # each kind's constructor has arguments of its own
        own = settings_of(cls)
        chosen = own() if settings is None else settings if isinstance(settings, own) else settings.cast(own)
        part: P = cls(chosen, *arguments)
        require_protocol(part, self.protocol, f"{self.kind} {name!r}")
        return part
