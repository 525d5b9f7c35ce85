"""The other side of ``--reward command:...`` for programs in Python: answer batches of fields."""

import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import BinaryIO, TextIO, cast

import numpy as np

Answer = Callable[[np.ndarray], "np.ndarray | Sequence[float]"]
"""A function of fields (b, c, h, w), float32, physical units, that returns b rewards."""


def serve(function: Answer) -> None:
    """Answer batches until the input ends: read .npy arrays (b, c, h, w) from stdin, print b lines with one number each.

    Whatever else the function prints goes to stderr. ValueError if it does not return b numbers.
    """
    answers, batches = _own_stdout(), cast(io.BufferedReader, sys.stdin.buffer)
    while batches.peek(1):
        batch = np.lib.format.read_array(_Pipe(batches), allow_pickle=False)
        numbers = np.asarray(function(batch), dtype=np.float64)
        if numbers.shape != (len(batch),):
            raise ValueError(f"a reward must return {len(batch)} numbers, shape ({len(batch)},), got {numbers.shape}")
        answers.write("".join(f"{number!r}\n" for number in numbers.tolist()))
        answers.flush()


class _Pipe:
    """A stream that only reads, since NumPy takes any other stream for a file that it can seek in."""

    def __init__(self, stream: BinaryIO) -> None:
        self.read = stream.read


def _own_stdout() -> TextIO:
    """Return the stdout of this process, and send what others print there to stderr: libraries in C and Fortran too."""
    sys.stdout.flush()
    own = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return own
