"""Rewards from a program in another process: a solver, a script in any language, a service.

The program is started once, without a shell. For each batch it reads one array in NumPy's .npy format from stdin, (b, c, h, w),
float32, physical units, and prints b lines with one number each. The reward of a field must be a pure function of the field.
A Python program calls envs.rewards.serve for this. A program with ``{file}`` among its words is started for each batch; the
path of a .npy file stands in place of ``{file}``.

The environment variable PIRF_RAY_FIELDS describes the fields: a JSON object with env_id, resolution, parameters and channels.
"""

import io
import json
import logging
import math
import os
import shlex
import shutil
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from envs.common.checks import ConfigError, not_negative, positive, require
from envs.common.parts import PartSettings
from envs.numerics.conditions import Condition
from envs.pdes import PDE
from envs.rewards.base import RewardOutput, Scope
from envs.rewards.programs import Program, ProgramError

S = TypeVar("S", bound=PartSettings)
log = logging.getLogger(__name__)
FILE = "{file}"
"""Word, or part of a word, that is replaced by the path of a batch."""
FIELDS = "PIRF_RAY_FIELDS"
"""Environment variable of the program that describes the fields."""


class RewardError(RuntimeError):
    """An error of a reward's program that restarts do not mend. Its message has the command and its last lines on stderr."""


@dataclass(frozen=True, kw_only=True)
class CommandSettings(PartSettings):
    """Settings of a reward that is a program."""

    reward_time_limit: float = 60.0
    """Seconds that the reward's program has for a batch, its start included."""
    reward_restarts: int = 3
    """How often the reward's program is started again for the same batch after it died, hung or printed no number."""
    reward_directory: str = ""
    """Directory in which the reward's program runs. Empty: the current directory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive(self, "reward_time_limit")
        not_negative(self, "reward_restarts")
        if self.reward_directory:
            require(Path(self.reward_directory).is_dir(), f"--reward-directory: no directory {self.reward_directory}")


class CommandReward:
    """A program in another process as a reward. It has no gradient, and it does not see the condition.

    The program starts at the first batch. It runs until the reward is closed or collected. A copy in another process starts a
    program of its own, in the same directory.
    """

    differentiable = False
    """A program returns numbers, no gradient."""
    scope: Scope = "sample"
    """The reward of a sample does not depend on its batch."""
    Settings = CommandSettings

    def __init__(
        self,
        command: Sequence[str],
        pde: PDE | None = None,
        *,
        time_limit: float = 60.0,
        restarts: int = 3,
        directory: str = "",
    ) -> None:
        """Set the words of the command, and the PDE that is described to the program.

        ``time_limit``: seconds per batch. ``restarts``: restarts per batch. ``directory``: where the program runs; empty: here.
        ConfigError if there is no such program or directory.
        """
        self.settings = located(
            CommandSettings(reward_time_limit=time_limit, reward_restarts=restarts, reward_directory=directory)
        )
        self.command = (_program(command, self.settings.reward_directory), *command[1:])
        self._variables = {} if pde is None else {FIELDS: json.dumps(_description(pde))}
        self.restarts_done = 0
        """Restarts so far, of all batches."""
        self._program: Program | None = None
        self._lock = threading.Lock()

    @classmethod
    def with_settings(cls, command: Sequence[str], settings: CommandSettings, pde: PDE | None = None) -> "CommandReward":
        """Return the reward of a command with its settings."""
        limit, restarts, directory = settings.reward_time_limit, settings.reward_restarts, settings.reward_directory
        return cls(command, pde, time_limit=limit, restarts=restarts, directory=directory)

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        """Return the rewards (b,) of fields (b, c, h, w). A reward is finite if its field is.

        RewardError if the program fails for one batch more often than it may be restarted.
        """
        if not len(fields):
            return RewardOutput(reward=fields.new_zeros(0))
        batch = fields.detach().to("cpu", torch.float32).contiguous().numpy()
        with self._lock:
            numbers = self._numbers(batch)
        return RewardOutput(reward=torch.tensor(numbers, dtype=fields.dtype, device=fields.device))

    def close(self) -> None:
        """End the program. The next batch starts it again."""
        program, self._program = self._program, None
        if program is not None:
            program.close()

    def _numbers(self, batch: np.ndarray) -> list[float]:
        """Return the program's answers. The same batch is asked again after a failure."""
        for attempt in range(self.settings.reward_restarts + 1):
            try:
                lines = self._from_file(batch) if self._takes_files else self._from_stdin(batch)
                return _parsed(lines, batch)
            except ProgramError as error:
                failure, program = error, self._kill()
            except BaseException:  # an answer that is still on its way must not be taken for the next batch's
                self._kill()
                raise
            if attempt < self.settings.reward_restarts:
                self.restarts_done += 1
                log.warning("reward command %r: %s; it is started again", shlex.join(self.command), failure)
        raise RewardError(self._report(failure, program)) from failure

    @property
    def _takes_files(self) -> bool:
        return any(FILE in word for word in self.command)

    def _from_stdin(self, batch: np.ndarray) -> list[str]:
        stream = io.BytesIO()
        np.lib.format.write_array(stream, batch, allow_pickle=False)
        if self._program is None or self._program.owner != os.getpid():
            self._program = self._start(self.command)
        return self._program.ask(stream.getvalue(), len(batch), self.settings.reward_time_limit)

    def _from_file(self, batch: np.ndarray) -> list[str]:
        with tempfile.TemporaryDirectory(prefix="pirf_ray_reward_") as folder:
            path = Path(folder) / "fields.npy"
            np.save(path, batch, allow_pickle=False)
            command = [word.replace(FILE, str(path)) for word in self.command]
            self._program = self._start(command, asked=False)
            lines = self._program.run(len(batch), self.settings.reward_time_limit)
            self.close()
            return lines

    def _start(self, command: Sequence[str], *, asked: bool = True) -> Program:
        return Program(command, directory=self.settings.reward_directory, variables=self._variables, asked=asked)

    def _kill(self) -> Program | None:
        """Kill the program and return it."""
        program, self._program = self._program, None
        if program is not None:
            program.kill()
        return program

    def _report(self, failure: ProgramError, program: Program | None) -> str:
        attempts = self.settings.reward_restarts + 1
        said = program.stderr_tail() if program else []
        shown = "its last lines on stderr:\n  " + "\n  ".join(said) if said else "nothing on stderr"
        return f"reward command {shlex.join(self.command)!r}: {failure} (attempt {attempts} of {attempts}); {shown}"

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name not in ("_program", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _program=None, _lock=threading.Lock())


def located(settings: S) -> S:
    """Return a reward's settings for processes that run in another directory: an empty directory becomes the present one."""
    if isinstance(settings, CommandSettings) and not settings.reward_directory:
        return replace(settings, reward_directory=os.getcwd())
    return settings


def _program(command: Sequence[str], directory: str) -> str:
    """Return the absolute path of a command's program. ConfigError if it is missing or not executable."""
    if not command:
        raise ConfigError("--reward command: needs a program, such as command:python reward.py")
    name = command[0]
    beside = os.path.join(directory, name)
    found = shutil.which(beside) if os.sep in name else shutil.which(name) or shutil.which(beside)
    if found is None and Path(beside).is_file():
        raise ConfigError(f"--reward command: {name} is not executable; name its interpreter, such as command:python {name}")
    if found is None:
        raise ConfigError(f"--reward command: no program {name!r} on the PATH or in {directory}")
    return os.path.abspath(found)


def _description(pde: PDE) -> dict[str, Any]:
    return {
        "env_id": pde.env_id,
        "resolution": pde.resolution,
        "parameters": pde.parameters,
        "channels": list(pde.channels),
    }


def _parsed(lines: list[str], batch: np.ndarray) -> list[float]:
    """Return the numbers of the lines. ProgramError if a line is no number, or is not finite although its field is."""
    numbers = []
    for row, line in enumerate(lines):
        try:
            number = float(line)
        except ValueError:
            raise ProgramError(f"line {row + 1} of {len(lines)} is {line[:80]!r}, expected a number") from None
        if not math.isfinite(number) and np.isfinite(batch[row]).all():
            raise ProgramError(f"line {row + 1} of {len(lines)} is {line[:80]!r}, expected a finite number")
        numbers.append(number)
    return numbers
