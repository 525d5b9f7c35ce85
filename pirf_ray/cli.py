"""What the commands share: dataclasses as flags, one-line errors, progress."""

import contextlib
import dataclasses
import errno
import io
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import tyro
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from envs.pdes import REGISTRY
from envs.plugins import load_module
from pirf_ray.config import LearnerFailed

T = TypeVar("T")
Config = TypeVar("Config")
DEFAULT_ENV = "Burgers-v0"
USAGE_ERROR = 2
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)
PLAIN_SECONDS = 15.0
INTERRUPTED = 128 + signal.SIGINT


def parse(
    config_type: type[Config], *, argv: list[str] | None, prog: str, description: str | None, default: Any = None
) -> Config:
    """Parse flags into a dataclass. Nested groups give plain flags (``--truncation``), grouped in --help."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            return tyro.cli(
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


def _settings_error(ending: BaseException | None) -> ValueError | None:
    """The ValueError that a settings class raised in its own check, if that is why tyro exited.

    A value of the wrong type ends in a ValueError too (int("abc")), but only tyro's message about it names the flag.
    """
    while ending is not None:
        calls = traceback.extract_tb(ending.__traceback__)
        if isinstance(ending, ValueError) and any(call.name == "__post_init__" for call in calls):
            return ending
        ending = ending.__context__
    return None


def flag_value(argv: list[str] | None, flag: str, default: str) -> str:
    """The value of one flag, read before the rest is parsed: it decides the other flags' defaults."""
    arguments = sys.argv[1:] if argv is None else argv
    value = default
    for i, argument in enumerate(arguments):
        if argument == flag and i + 1 < len(arguments):
            value = arguments[i + 1]
        elif argument.startswith(flag + "="):
            value = argument.partition("=")[2]
    return value


def choose(kind: str, name: str, known: dict[str, T]) -> T:
    """known[name]; ValueError names the flag and what there is."""
    if name not in known:
        raise ValueError(f"--{kind}: unknown {kind} {name!r}; known: {', '.join(sorted(known))}")
    return known[name]


def named_env(argv: list[str] | None, default: str = DEFAULT_ENV) -> tuple[str, list[str]]:
    """The registered id that ``--env`` names, and the arguments with that id in its place."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    name = flag_value(arguments, "--env", default)
    env = check_env(name)
    plain = {name: env, f"--env={name}": f"--env={env}"}
    return env, [plain.get(argument, argument) for argument in arguments]


def check_env(name: str) -> str:
    """The registered id that ``--env`` names; ``module:Id`` imports the module first, as Gymnasium does."""
    module, colon, env_id = name.rpartition(":")
    if colon:
        load_module(module)
    choose("env", env_id, REGISTRY)
    return env_id


def use_address(address: str | None) -> str | None:
    """The cluster of --address, else of RAY_ADDRESS; None: Ray is started here.

    Before pirf_ray.distributed is imported: Ray's switches, and the processes started from here, depend on the variable.
    """
    if address:
        os.environ["RAY_ADDRESS"] = address
    return os.environ.get("RAY_ADDRESS") or None


def run_command(main: Callable[[], None]) -> None:
    """Run a command: bad input is one line on stderr and exit code 2, Ctrl-C is exit code 130.

    Bad input is ValueError (settings, checkpoints, data files), FileExistsError and FileNotFoundError. A run that failed
    for good is one line and exit code 1, as is a disk that is full or closed. Anything else is a bug, and keeps its traceback.
    """
    try:
        main()
    except (ValueError, FileExistsError, FileNotFoundError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(USAGE_ERROR)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"error: {error}; what was written before is kept", file=sys.stderr)
        sys.exit(1)
    except LearnerFailed as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as interrupt:
        print(str(interrupt) or "interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)


def progress_bar(label: str, console: Console | None = None) -> Callable[[Iterable[range]], Iterator[range]]:
    """Wraps an iterable of ranges of samples; shows how many are done: a bar, or where there is no terminal a line at times."""

    def track(parts: Iterable[range]) -> Iterator[range]:
        listed = list(parts)
        total, done = sum(len(part) for part in listed), 0
        started = printed = time.monotonic()
        with samples_progress(console) as progress:
            task = progress.add_task(label, total=total)
            for part in listed:
                yield part
                progress.advance(task, len(part))
                done, now = done + len(part), time.monotonic()
                if not progress.console.is_terminal and now - printed >= PLAIN_SECONDS:
                    printed = now
                    rate = done / (now - started)
                    line = f"{label} {done}/{total} | {rate:.1f} samples/s | {(total - done) / rate / 60:.1f} min left"
                    progress.console.print(line, highlight=False, soft_wrap=True)

    return track


def print_table(table: Table, width: int) -> None:
    """Print a table; where no terminal sets a width, as wide as it wants to be."""
    console = Console()
    (console if console.is_terminal else Console(width=width)).print(table)


def samples_progress(console: Console | None = None) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console or Console(stderr=True),
        transient=True,
    )


def changed_flags(a: Any, b: Any) -> list[str]:
    """Names of the fields in which two dataclasses of one type differ, groups entered."""
    changed = []
    for f in dataclasses.fields(a):
        ours, theirs = getattr(a, f.name), getattr(b, f.name)
        if dataclasses.is_dataclass(ours):
            changed += changed_flags(ours, theirs)
        elif ours != theirs:
            changed.append(f"--{f.name.replace('_', '-')}")
    return changed
