"""Communication of the learner's ranks: one process, or several under torch.distributed (pirf_ray.distributed)."""

from typing import Any, Protocol

import torch


class Communicator(Protocol):
    """Collective operations of a data-parallel learner's ranks. Every rank calls them in the same order."""

    rank: int
    """Number of this rank, from 0."""
    world: int
    """Number of ranks."""

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the sum over all ranks, with the same bits on each rank."""
        ...

    def scatter(self, shares: list[Any] | None) -> Any:
        """Return this rank's share. Rank 0 passes the list of shares, the other ranks None."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Return the value that rank 0 passes."""
        ...


class SingleProcess:
    """Communicator of a learner with one rank."""

    rank = 0
    world = 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor."""
        return tensor

    def scatter(self, shares: list[Any] | None) -> Any:
        """Return the only share. ValueError unless there is exactly one."""
        if shares is None or len(shares) != 1:
            raise ValueError(f"one process needs one share, got {shares and len(shares)}")
        return shares[0]

    def broadcast(self, value: Any) -> Any:
        """Return the value."""
        return value
