"""A reader of pickles that imports and calls nothing of the file.

``pickletools.genops`` decodes the opcodes. ``Machine`` runs them on lists, dicts, sets, tuples and inert objects. A global is
only a name, never an imported object. A global that the rules do not list is refused by its name.
"""

import io
import pickletools
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

MAX_OPCODES = 2_000_000
"""Largest number of opcodes. EDM's network of 62 million weights has 60,000."""


class Refused(ValueError):
    """Error of a file with refused content. The message names the content."""


@dataclass(frozen=True)
class Global:
    """Name of a class or function."""

    module: str
    """Module, as the pickle names it."""
    name: str
    """Name in the module."""

    def __str__(self) -> str:
        return ascii(f"{self.module}.{self.name}"[:200])[1:-1]


@dataclass(eq=False)
class Inert:
    """Object of a class that is never run."""

    class_name: str
    """Name of the class."""
    args: tuple[Any, ...] = ()
    """Arguments of the constructor."""
    state: Any = None
    """State that the pickle gives to the object."""

    def set_state(self, state: Any) -> None:
        """Keep the state."""
        self.state = state


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Globals that a pickle may name."""

    builders: Mapping[Global, Callable[..., Any]]
    """Our own functions that are called in place of a global."""
    inert: Collection[Global] = ()
    """Classes whose objects become Inert."""
    inert_packages: Collection[str] = ()
    """Top-level packages whose classes all become Inert."""
    names: Collection[Global] = ()
    """Globals that may be named but not called."""
    persistent_ids: bool = False
    """Whether persistent ids are kept as tuples; otherwise they are refused."""

    def __contains__(self, name: Global) -> bool:
        return name in self.names or self.may_call(name)

    def may_call(self, name: Global) -> bool:
        """Return whether the pickle may call the global."""
        package = name.module.split(".")[0]
        return name in self.builders or name in self.inert or package in self.inert_packages


def is_plain(value: Any) -> bool:
    """Return whether a value is None, a string, a number, a bool or bytes."""
    return value is None or type(value) in (str, int, float, bool, bytes)


def make_set(items: list[Any]) -> set[Any]:
    """Return the set of a list's items. Refused unless all are plain values."""
    if type(items) is not list or not all(map(is_plain, items)):
        raise Refused("a set of anything but numbers and strings")
    return set(items)


class Machine:
    """Stack machine that runs the opcodes of one pickle under the rules."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self, stream: io.BytesIO) -> Any:
        """Return the pickle's value. The stream ends behind the STOP opcode."""
        for count, (opcode, argument, _) in enumerate(pickletools.genops(stream)):
            if count >= MAX_OPCODES:
                raise Refused(f"a pickle of more than {MAX_OPCODES:,} opcodes")
            if opcode.name in _ARGUMENT:
                self.stack.append(argument)
            elif opcode.name in _CONSTANT:
                self.stack.append(_CONSTANT[opcode.name]())
            elif opcode.name in _ACTIONS:
                _ACTIONS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                raise Refused(f"the opcode {opcode.name}")
        return self.stack.pop()

    def mark(self, _: Any) -> None:
        """Set a mark on the stack."""
        self.outer.append(self.stack)
        self.stack = []

    def items(self) -> list[Any]:
        """Return the values above the mark and remove them with the mark."""
        above, self.stack = self.stack, self.outer.pop()
        return above

    def pop(self, _: Any) -> None:
        """Remove the top value or mark."""
        if self.stack:
            self.stack.pop()
        else:
            self.stack = self.outer.pop()

    def pop_mark(self, _: Any) -> None:
        """Remove the mark and the values above it."""
        self.items()

    def put(self, index: int | None) -> None:
        """Store the top value in the memo, by default under the next index."""
        self.memo[len(self.memo) if index is None else index] = self.stack[-1]

    def get(self, index: int) -> None:
        """Push a value of the memo."""
        self.stack.append(self.memo[index])

    def tuple_of(self, count: int) -> None:
        """Replace the top ``count`` values by their tuple."""
        if len(self.stack) < count:
            raise Refused("a tuple of more values than the stack holds")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def collect(self, kind: type[list[Any]] | type[tuple[Any, ...]]) -> None:
        """Replace the values above the mark by their list or tuple."""
        items = self.items()
        self.stack.append(kind(items))

    def append_all(self, items: list[Any]) -> None:
        """Append the items to the list on top of the stack."""
        if type(self.stack[-1]) is not list:
            raise Refused("an append to anything but a list")
        self.stack[-1].extend(items)

    def set_all(self, items: list[Any]) -> None:
        """Set the items, keys and values in turn, in the dict on top of the stack."""
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise Refused("items of anything but a dict")
        if not all(map(is_plain, items[::2])):
            raise Refused("a key that is neither a number nor a string")
        target.update(zip(items[::2], items[1::2], strict=True))

    def add_all(self, items: list[Any]) -> None:
        """Add the items to the set on top of the stack."""
        if type(self.stack[-1]) is not set:
            raise Refused("an addition to anything but a set")
        self.stack[-1].update(make_set(items))

    def single(self) -> list[Any]:
        """Return the top value as a list and remove it."""
        return [self.stack.pop()]

    def pair(self) -> list[Any]:
        """Return the top two values, the lower first, and remove them."""
        value, key = self.stack.pop(), self.stack.pop()
        return [key, value]

    def global_name(self, argument: str | None) -> None:
        """Push a global's name. GLOBAL has the argument ``module name``; STACK_GLOBAL takes both from the stack."""
        module, name = self.pair() if argument is None else argument.split(" ", 1)
        if type(module) is not str or type(name) is not str:
            raise Refused("a global whose name is not a string")
        known = Global(module, name)
        if known not in self.rules:
            raise Refused(f"the global {known}")
        self.stack.append(known)

    def construct(self, _: Any) -> None:
        """Replace a global and its arguments by the object that stands for the call."""
        args, target = self.stack.pop(), self.stack.pop()
        if not isinstance(target, Global) or type(args) is not tuple or not self.rules.may_call(target):
            raise Refused("a call of anything but a known class")
        build = self.rules.builders.get(target)
        self.stack.append(build(*args) if build else Inert(target.name, args))

    def set_state(self, _: Any) -> None:
        """Give the top state to the object below it. Attributes of an OrderedDict (``_metadata`` of a state_dict) are dropped."""
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Inert):
            target.set_state(state)
        elif type(target) is not dict:
            raise Refused(f"a state for a {type(target).__name__}")

    def persistent_id(self, _: Any) -> None:
        """Keep a persistent id as its tuple if the rules allow it."""
        if not self.rules.persistent_ids:
            raise Refused("a persistent id (not a plain pickle, perhaps a file of torch.save)")


_ARGUMENT = {"BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"}
_ARGUMENT |= {"STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"}
_ARGUMENT |= {"UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"}
_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
}
_ACTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine.mark,
    "POP": Machine.pop,
    "POP_MARK": Machine.pop_mark,
    "DUP": lambda machine, _: machine.stack.append(machine.stack[-1]),
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"), Machine.put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), Machine.get),
    "TUPLE": lambda machine, _: machine.collect(tuple),
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": lambda machine, _: machine.collect(list),
    "APPEND": lambda machine, _: machine.append_all(machine.single()),
    "APPENDS": lambda machine, _: machine.append_all(machine.items()),
    "SETITEM": lambda machine, _: machine.set_all(machine.pair()),
    "SETITEMS": lambda machine, _: machine.set_all(machine.items()),
    "ADDITEMS": lambda machine, _: machine.add_all(machine.items()),
    **dict.fromkeys(("GLOBAL", "STACK_GLOBAL"), Machine.global_name),
    **dict.fromkeys(("REDUCE", "NEWOBJ"), Machine.construct),
    "BUILD": Machine.set_state,
    "BINPERSID": Machine.persistent_id,
}
