"""Dataclasses as flags, and flags that decide about the rest."""

import contextlib
import dataclasses
import io
import os
import sys
import traceback
from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

import tyro

from envs.common.checks import flag
from envs.common.registry import choose, imported_name
from envs.pdes import REGISTRY

Config = TypeVar("Config")
DEFAULT_ENV = "Burgers-v0"


def parse(
    config_type: type[Config], *, argv: list[str] | None, prog: str, description: str | None, default: Any = None
) -> Config:
    """Parse flags into a dataclass. Nested groups give plain flags (``--truncation``), grouped in --help."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            parsed: Config = tyro.cli(
                config_type,
                args=argv,
                prog=prog,
                description=description,
                default=default,
                config=(tyro.conf.OmitArgPrefixes,),
            )
    except SystemExit as ending:
        refusal = _settings_error(ending)
        if refusal is not None:  # our own check of a value: one line, instead of tyro's box around it
            raise refusal from None
        sys.stderr.write(printed.getvalue())
        raise
    return parsed


def _settings_error(ending: BaseException | None) -> ValueError | None:
    """Return the ValueError that a settings class raised in its own check, if that is why tyro exited.

    A value of the wrong type ends in a ValueError too (int("abc")), but only tyro's message about it names the flag.
    """
    while ending is not None:
        calls = traceback.extract_tb(ending.__traceback__)
        if isinstance(ending, ValueError) and any(call.name == "__post_init__" for call in calls):
            return ending
        ending = ending.__context__
    return None


def flag_value(argv: list[str] | None, flag: str, default: str) -> str:
    """Return the value of one flag, read before the rest is parsed: it decides the other flags' defaults."""
    arguments = sys.argv[1:] if argv is None else argv
    value = default
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(flag + "="):
            value = argument.partition("=")[2]
    return value


def flag_values(argv: list[str] | None, flag: str) -> tuple[str, ...]:
    """Return all values of one flag, read before the rest is parsed; empty if it is not given."""
    arguments = sys.argv[1:] if argv is None else argv
    values: tuple[str, ...] = ()
    for i, argument in enumerate(arguments):
        if argument == flag:
            values = tuple(takewhile(lambda word: not word.startswith("--"), arguments[i + 1 :]))
        elif argument.startswith(flag + "="):
            values = (argument.partition("=")[2],)
    return values


def named_env(argv: list[str] | None, default: str = DEFAULT_ENV) -> tuple[str, list[str]]:
    """Return the registered id that ``--env`` names, and the arguments with that id in its place."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = flag_value(arguments, "--env", default)
    env = check_env(name)
    plain = {name: env, f"--env={name}": f"--env={env}"}
    return env, [plain.get(argument, argument) for argument in arguments]


def check_env(name: str) -> str:
    """Return the registered id that ``--env`` names; ``module:Id`` imports the module first, as Gymnasium does."""
    env_id = imported_name(name, "env")
    choose("env", env_id, REGISTRY)
    return env_id


def use_address(address: str | None) -> str | None:
    """Return the cluster of --address, else of RAY_ADDRESS; None: Ray is started here.

    Before pirf_ray.distributed is imported: Ray's switches, and the processes started from here, depend on the variable.
    """
    if address:
        os.environ["RAY_ADDRESS"] = address
    return os.environ.get("RAY_ADDRESS") or None


def changed_flags(a: Any, b: Any) -> list[str]:
    """Return the flags of the fields in which two dataclasses of one type differ, groups entered."""
    changed = []
    for f in dataclasses.fields(a):
        ours, theirs = getattr(a, f.name), getattr(b, f.name)
        if dataclasses.is_dataclass(ours):
            if type(ours) is type(theirs):  # settings of different parts: the parts' own flag is named
                changed += changed_flags(ours, theirs)
        elif ours != theirs:
            changed.append(flag(f.name))
    return changed


def not_there(path: Path | None, flag_name: str, what: str) -> None:
    """Raise FileExistsError if an output exists already; ``what`` is never overwritten."""
    if path is not None and path.exists():
        raise FileExistsError(f"--{flag_name} {path} exists; {what} are never overwritten")
