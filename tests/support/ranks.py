"""Several ranks of a learner in this process, a thread for each."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch

T = TypeVar("T")
PATIENCE = 60.0
"""Seconds that a rank waits for the others."""


class Meeting:
    """Place where all ranks hand in a value and get the values of all."""

    def __init__(self, world: int) -> None:
        self.values: list[Any] = [None] * world
        self.barrier = threading.Barrier(world)

    def exchange(self, rank: int, value: Any) -> list[Any]:
        """Return the values of all ranks, in the order of the ranks."""
        self.values[rank] = value
        self.barrier.wait(PATIENCE)
        found = list(self.values)
        self.barrier.wait(PATIENCE)  # nobody writes the next value before everybody has read this one
        return found


class ThreadCommunicator:
    """Communicator of a rank that is a thread."""

    def __init__(self, rank: int, world: int, meeting: Meeting) -> None:
        self.rank, self.world, self._meeting = rank, world, meeting

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, with the same bits on each rank."""
        return torch.stack(self._meeting.exchange(self.rank, tensor.clone())).sum(0)

    def scatter(self, shares: list[Any] | None) -> Any:
        """Return this rank's share of what rank 0 passes."""
        return self._meeting.exchange(self.rank, shares)[0][self.rank]

    def broadcast(self, value: Any) -> Any:
        """Return the value that rank 0 passes."""
        return self._meeting.exchange(self.rank, value)[0]


def on_ranks(world: int, function: Callable[[ThreadCommunicator], T]) -> list[T]:
    """Return what the function returns on each rank. The first error ends all ranks and is raised."""
    meeting = Meeting(world)

    def run(rank: int) -> T:
        try:
            return function(ThreadCommunicator(rank, world, meeting))
        except BaseException:
            meeting.barrier.abort()
            raise

    with ThreadPoolExecutor(world) as pool:
        made = [pool.submit(run, rank) for rank in range(world)]
    errors = [error for future in made if (error := future.exception()) is not None]
    others = [error for error in errors if not isinstance(error, threading.BrokenBarrierError)]
    if errors:
        raise (others or errors)[0]
    return [future.result() for future in made]
