"""A learner over several processes: torch.distributed, as Ray Train sets it up."""

from typing import Any

import torch
import torch.distributed as dist


class TorchCommunicator:
    """Ranks of the default process group (gloo on CPUs, nccl on GPUs)."""

    def __init__(self) -> None:
        self.rank = dist.get_rank()
        self.world = dist.get_world_size()

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        dist.all_reduce(tensor)
        return tensor

    def scatter(self, shares: list[Any] | None) -> Any:
        received: list[Any] = [None]
        dist.scatter_object_list(received, shares)
        return received[0]

    def broadcast(self, value: Any) -> Any:
        values = [value]
        dist.broadcast_object_list(values)
        return values[0]
