"""What the learner asks of its peers: one process, or several under torch.distributed (pirf_ray.distributed)."""

from typing import Any, Protocol

import torch


class Communicator(Protocol):
    """Ranks of a data-parallel learner."""

    rank: int
    world: int

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Sum over all ranks, the same bits on each."""
        ...

    def scatter(self, shares: list[Any] | None) -> Any:
        """Rank 0 gives each rank its share (rank 0 passes the list, the others None)."""
        ...

    def broadcast(self, value: Any) -> Any:
        """Rank 0's value on every rank."""
        ...


class SingleProcess:
    """A learner alone."""

    rank = 0
    world = 1

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    def scatter(self, shares: list[Any] | None) -> Any:
        if shares is None or len(shares) != 1:
            raise ValueError(f"one process needs one share, got {shares and len(shares)}")
        return shares[0]

    def broadcast(self, value: Any) -> Any:
        return value
