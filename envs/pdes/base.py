"""The PDE seam: definition, solver, residuals, re-solve. One PDE a file implements it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch

from envs.grids import Grid
from envs.normalization import Normalizer

REGISTRY: dict[str, type["PDE"]] = {}


class PDE(ABC):
    """One equation on one grid. Fields are (b, c, h, w) in physical units everywhere in this class."""

    env_id: ClassVar[str]
    equation: ClassVar[str]
    channels: ClassVar[tuple[str, ...]]
    units: ClassVar[str]
    solver: ClassVar[str]
    default_operator: ClassVar[str]
    unrewarded_operator: ClassVar[str]
    """The operator that no default reward uses: the independent witness of every evaluation."""
    default_resolution: ClassVar[int]

    def __init__(self, resolution: int) -> None:
        if resolution < 8 or resolution % 2:
            raise ValueError(f"resolution must be even and at least 8, got {resolution}")
        self.resolution = resolution

    @property
    @abstractmethod
    def grid(self) -> Grid: ...

    @property
    @abstractmethod
    def normalizer(self) -> Normalizer: ...

    @abstractmethod
    def solve(self, seed: int, stream: str, sample_ids: Sequence[int]) -> torch.Tensor:
        """Ground truth (len(sample_ids), c, h, w), float64, from seeds alone."""

    @property
    @abstractmethod
    def operators(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """Residual operators by name: fields -> residual map (b, k, h', w') of the rows and columns it is defined on."""

    @property
    def conditions(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """Boundary and initial conditions by name: fields -> violation (b,), 0 where the condition holds."""
        return {}

    @abstractmethod
    def resolve(self, fields: torch.Tensor) -> torch.Tensor:
        """Re-solve from the sample's own data: the solver's fields (b, c, h, w) that belong to it."""

    @abstractmethod
    def resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Relative L2 error (b,) of the generated solution against the re-solved one."""

    @abstractmethod
    def trivial_resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """The same error (b,) of the trivial competitor (persistence, zero), to be beaten."""

    @abstractmethod
    def marginal(self, fields: torch.Tensor) -> torch.Tensor:
        """The part (b, ...) whose law is known: coefficient, source or initial condition."""

    def augment(self, fields: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Random exact symmetries of the equation and of its data's law, for pretraining. Default: none."""
        return fields

    @property
    def shape(self) -> tuple[int, int, int]:
        return (len(self.channels), *self.grid.shape)

    def residual_map(self, fields: torch.Tensor, operator: str) -> torch.Tensor:
        """Residual map of the named operator; raises ValueError on an unknown name or shape."""
        self.check_fields(fields)
        if operator not in self.operators:
            raise ValueError(f"unknown operator {operator!r} of {self.env_id}; known: {sorted(self.operators)}")
        return self.operators[operator](fields)

    def residual(self, fields: torch.Tensor, operator: str) -> torch.Tensor:
        """Mean square residual (b,) of the named operator."""
        return self.residual_map(fields, operator).square().flatten(1).mean(1)

    def check_fields(self, fields: torch.Tensor) -> None:
        if fields.ndim != 4 or tuple(fields.shape[1:]) != self.shape:
            raise ValueError(f"{self.env_id} expects fields (b, {', '.join(map(str, self.shape))}), got {tuple(fields.shape)}")


def register(cls: type[PDE]) -> type[PDE]:
    """Class decorator: make a PDE known under its ``env_id``."""
    REGISTRY[cls.env_id] = cls
    return cls


def make_pde(env_id: str, resolution: int | None = None) -> PDE:
    """The PDE registered under ``env_id`` (such as ``Burgers-v0``), at the given or its default resolution."""
    if env_id not in REGISTRY:
        raise ValueError(f"unknown env {env_id!r}; known: {sorted(REGISTRY)}")
    cls = REGISTRY[env_id]
    return cls(cls.default_resolution if resolution is None else resolution)
