"""The seam of the learning parameters: which tensors learn, and what is attached to the network for them.

>>> import torch
>>> class Everything:
...     def attach(self, denoiser):
...         return denoiser, [Group(parameters=denoiser.tensors())]
"""

from dataclasses import dataclass
from typing import Protocol

import torch

from envs.common.parts import PartRegistry
from pirf_ray.diffusion.denoiser import AbstractDenoiser


@dataclass(frozen=True, kw_only=True)
class Group:
    """Learning parameters with their own rate and clipping."""

    parameters: dict[str, torch.nn.Parameter]
    """Parameters by the names under which ``AbstractDenoiser.tensors`` has them."""
    rate: float = 1.0
    """Factor on the learning rate."""
    clip: float | None = None
    """Largest norm of this group's gradient. None: the norm of all groups together is clipped."""


class Parameters(Protocol):
    """Choice of the learning parameters. It is made with (settings)."""

    def attach(self, denoiser: AbstractDenoiser) -> tuple[AbstractDenoiser, list[Group]]:
        """Return the denoiser, perhaps with parts attached to it, and the groups of its learning parameters.

        The denoiser may be changed in place. At the start it must equal what it was. All other parameters are frozen.
        """
        ...


PARAMETERS: PartRegistry[Parameters] = PartRegistry("parameters", Parameters)
"""Choices of learning parameters by name."""
register = PARAMETERS.register
