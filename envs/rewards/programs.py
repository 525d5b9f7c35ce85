"""Programs in other processes: bytes go to their stdin, lines come back on their stdout, within a time limit."""

import os
import selectors
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import IO

GRACE_SECONDS = 1.0
"""Time that a program gets to end by itself when its input ends, and to hand over its last words."""
EXIT_SECONDS = 5.0
"""Time that a program gets to end by itself when it has closed its output, so that its exit code is known."""
PIPE_BYTES = 2**16
"""Bytes that are read or written at once."""
TAIL_BYTES, TAIL_LINES = 2**13, 10
"""Bytes of stderr that are kept, and lines of them that are shown."""
LINE_BYTES = 2**10
"""Bytes of an answer, at most, on average."""

SIGNALS = {int(number): number.name for number in signal.Signals}


class ProgramError(RuntimeError):
    """An error of a program. Its message says what happened, without the command."""


class Program:
    """A running program in a process group of its own, started without a shell.

    The group ends when the object is closed or collected, or when this process ends. If this process is killed, the program's
    input ends.
    """

    def __init__(self, command: Sequence[str], *, directory: str, variables: Mapping[str, str], asked: bool = True) -> None:
        """Start the program in a directory, with further environment variables. ``asked``: whether ``ask`` will be used.

        ProgramError if it cannot be started.
        """
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE if asked else subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=directory,
                env={**os.environ, **variables},
                start_new_session=True,
            )
        except OSError as error:
            raise ProgramError(f"cannot be started in {directory}: {error}") from error
        self.owner = os.getpid()
        """Process that started the program. A fork of it must not use the program."""
        self._buffer, self._tail = bytearray(), bytearray()
        reader = threading.Thread(target=_drain, args=(_stream(self._process.stderr), self._tail), daemon=True)
        reader.start()
        self._finalizer = weakref.finalize(self, _end, self._process, reader, self.owner)
        for stream in filter(None, (self._process.stdin, self._process.stdout)):
            os.set_blocking(stream.fileno(), False)

    def ask(self, data: bytes, lines: int, seconds: float) -> list[str]:
        """Write data to the program's stdin and return the lines that it answers, exactly as many as are asked for.

        ProgramError if the program ends, if the time is over, or if it prints anything else.
        """
        self._read()
        if self._buffer:
            raise ProgramError(f"printed {_first(self._buffer)!r} before it was asked")
        self._exchange(data, lines, seconds)
        self._read()
        *answers, rest = self._buffer.split(b"\n", lines)
        self._buffer = rest
        if rest:
            raise ProgramError(f"printed more than {lines} lines, next {_first(rest)!r}")
        return [line.decode(errors="replace") for line in answers]

    def run(self, lines: int, seconds: float) -> list[str]:
        """Return the lines that the program prints until it ends.

        ProgramError if it fails, if the time is over, or if it prints another number of lines.
        """
        self._exchange(b"", None, seconds)
        answers = self._buffer.decode(errors="replace").splitlines()
        if self._process.returncode:
            raise ProgramError(f"{self._end_status()} after {len(answers)} of {lines} lines")
        if len(answers) != lines:
            raise ProgramError(f"printed {len(answers)} lines, expected {lines}")
        return answers

    def stderr_tail(self) -> list[str]:
        """Return the last lines that the program printed on stderr."""
        return bytes(self._tail).decode(errors="replace").splitlines()[-TAIL_LINES:]

    def kill(self) -> None:
        """Kill the program and its process group at once."""
        if self._finalizer.alive and self.owner == os.getpid():
            _kill_group(self._process)
        self.close()

    def close(self) -> None:
        """End the program: its input ends, and what still runs after GRACE_SECONDS is killed."""
        self._finalizer()

    def _exchange(self, data: bytes, lines: int | None, seconds: float) -> None:
        """Write data and read until there are enough lines. ``lines`` None: until the program ends."""
        end, left = time.monotonic() + seconds, memoryview(data)
        with selectors.DefaultSelector() as ready:
            ready.register(_stream(self._process.stdout), selectors.EVENT_READ)
            if left:
                ready.register(_stream(self._process.stdin), selectors.EVENT_WRITE)
            while left or lines is None or self._buffer.count(b"\n") < lines:
                if time.monotonic() >= end:
                    raise ProgramError(self._overdue(lines, seconds, unread=len(left)))
                if lines is not None and len(self._buffer) > LINE_BYTES * (lines + 1):
                    raise ProgramError(f"printed more than {LINE_BYTES} bytes per line: {_first(self._buffer)!r}")
                for key, _ in ready.select(max(0.0, end - time.monotonic())):
                    if key.fileobj is self._process.stdin:
                        left = left[self._write(left) :]
                        if not left:
                            ready.unregister(key.fileobj)
                    elif not self._read():
                        return self._wait(lines)
        return None

    def _write(self, data: memoryview) -> int:
        """Write as much as the pipe takes and return its size: everything if the program has closed its input."""
        try:
            return os.write(_stream(self._process.stdin).fileno(), data[:PIPE_BYTES])
        except BlockingIOError:
            return 0
        except BrokenPipeError:
            return len(data)

    def _read(self) -> bool:
        """Read what the program has printed. Return whether it may print more."""
        try:
            chunk = os.read(_stream(self._process.stdout).fileno(), PIPE_BYTES)
        except BlockingIOError:
            return True
        self._buffer += chunk
        return bool(chunk)

    def _wait(self, lines: int | None) -> None:
        """Wait for the end of a program whose output has ended. ProgramError if its answers are not complete."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(EXIT_SECONDS)
        if lines is not None or self._process.returncode is None:
            printed = self._buffer.count(b"\n")
            raise ProgramError(f"{self._end_status()} after {printed} of {lines} lines" if lines else self._end_status())

    def _end_status(self) -> str:
        code = self._process.returncode
        if code is None:
            return "closed its output"
        return f"exit code {code}" if code >= 0 else f"killed by {SIGNALS.get(-code, -code)}"

    def _overdue(self, lines: int | None, seconds: float, *, unread: int) -> str:
        printed = self._buffer.count(b"\n")
        answered = f"{printed} lines" if lines is None else f"{printed} of {lines} lines"
        return f"{answered} within {seconds:g} s" + (f", and {unread} bytes of the batch are not read" if unread else "")


def _stream(stream: IO[bytes] | None) -> IO[bytes]:
    assert stream is not None  # the process was started with a pipe
    return stream


def _first(printed: bytes | bytearray) -> str:
    """Return the start of the first line."""
    return bytes(printed[:80]).decode(errors="replace").partition("\n")[0]


def _drain(stream: IO[bytes], tail: bytearray) -> None:
    """Read a stream to its end and keep its last bytes."""
    with stream:
        while chunk := stream.read(PIPE_BYTES):
            tail += chunk
            del tail[:-TAIL_BYTES]


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes], reader: threading.Thread, owner: int) -> None:
    """End a program and what it has started. A fork of the owner leaves it alone."""
    if os.getpid() != owner:
        return
    if process.stdin:
        process.stdin.close()
    with suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    _kill_group(process)
    process.wait()
    reader.join(GRACE_SECONDS)
    _stream(process.stdout).close()
