"""The registry of all parts: PDEs, rewards, objectives, methods. Users name their own parts as ``module:name``."""

import importlib
import inspect
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar, cast

T = TypeVar("T")
Class = TypeVar("Class", bound=type)
VARIABLE = "PIRF_RAY_PDES"
"""Environment variable with the users' own modules, separated by commas. The processes of a run inherit it."""


def choose(kind: str, name: str, known: Mapping[str, T]) -> T:
    """Return ``known[name]``. ValueError names the flag ``--kind`` and the known names."""
    if name not in known:
        raise ValueError(f"--{kind}: {unknown(kind, name, known)}")
    return known[name]


def unknown(kind: str, name: str, known: Mapping[str, T]) -> str:
    """Return the message about a name that is not registered."""
    return f"unknown {kind} {name!r}; known: {', '.join(sorted(known))}"


class Registry(Mapping[str, T]):
    """A mapping of names to parts of one kind, in the order of their registration.

    >>> shapes = Registry[type]("shape")
    >>> @shapes.register("round")
    ... class Round: ...
    >>> shapes.find("round") is Round
    True
    """

    def __init__(self, kind: str, *, flag: str = "", make: Callable[[type], T] | None = None) -> None:
        """Make an empty registry of parts of a kind.

        ``flag`` names the command-line flag if it is not ``--kind``. ``make`` turns a registered class into its part.
        """
        self.kind, self.flag, self._make = kind, flag or kind, make
        self._parts: dict[str, T] = {}
        self._owners: dict[str, tuple[str, ...]] = {}
        KINDS[kind] = self

    def __getitem__(self, name: str) -> T:
        return self._parts[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._parts)

    def __len__(self) -> int:
        return len(self._parts)

    def register(self, name: str) -> Callable[[Class], Class]:
        """Return a class decorator that registers a class. ValueError if the name belongs to another class."""

        def add(cls: Class) -> Class:
            self._claim(name, (cls.__module__, cls.__qualname__))
            self._parts[name] = self._make(cls) if self._make else cast(T, cls)
            return cls

        return add

    def add(self, name: str, value: T, *, owner: str) -> T:
        """Register a value that is no class, and return it. ``owner`` is the module that defines it.

        ValueError if the name belongs to another module.
        """
        self._claim(name, (owner,))
        self._parts[name] = value
        return value

    def _claim(self, name: str, owner: tuple[str, ...]) -> None:
        if self._owners.get(name, owner) != owner:
            raise ValueError(f"{self.kind} {name!r} of {'.'.join(owner)} is taken by {'.'.join(self._owners[name])}")
        self._owners[name] = owner

    def describe(self) -> list[str]:
        """Return a line per part: its name, and its attribute ``line`` or the first line of its docstring."""
        width = max((len(name) for name in self), default=0)
        return [f"{name:<{width}}  {_line(part)}" for name, part in self.items()]

    def find(self, name: str) -> T:
        """Return the part registered as ``name``. ``module:name`` imports the module first.

        ValueError names the known parts.
        """
        plain = imported_name(name, self.flag)
        if plain not in self._parts:
            raise ValueError(f"--{self.flag}: {unknown(self.kind, plain, self._parts)}")
        return self._parts[plain]


def _line(part: Any) -> str:
    line = getattr(part, "line", None)
    return line if isinstance(line, str) else (inspect.getdoc(part) or "").partition("\n")[0]


KINDS: dict[str, Registry[Any]] = {}
"""All registries by their kind, in the order in which they were imported."""


def imported_name(name: str, flag: str) -> str:
    """Return the part of ``module:name`` after the colon, and import the module.

    Every process started from this process imports the module too.
    """
    module, colon, plain = name.rpartition(":")
    if colon:
        import_user_module(module, f"--{flag} {module}:...")
        named = named_modules()
        if module not in named:
            os.environ[VARIABLE] = ",".join([*named, module])
    return plain


def named_modules() -> list[str]:
    """Return the modules that the user of this process has named."""
    return [name for name in os.environ.get(VARIABLE, "").split(",") if name]


def import_user_module(module: str, source: str) -> None:
    """Import a module that registers parts. If there is no such module, ValueError names ``source``."""
    try:
        importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not (module + ".").startswith(error.name + "."):
            raise
        raise ValueError(f"{source}: no module {module!r} in this directory or on the Python path") from None
