"""The PDE seam: definition, solver, residuals, re-solve. One PDE a file implements it."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import gymnasium
import numpy as np
import torch

from envs.common.registry import Registry, unknown
from envs.numerics.grids import Grid
from envs.numerics.normalization import Normalizer

REGISTRY: Registry[type["PDE"]] = Registry("env")
REQUIRED = (
    "env_id",
    "equation",
    "channels",
    "units",
    "solver",
    "default_operator",
    "unrewarded_operator",
    "default_resolution",
)


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
    inputs: ClassVar[tuple[str, ...]] = ()
    """Channels that the equation takes as given: the others are its solution for them."""
    condition_weights: ClassVar[dict[str, float]] = {}
    """Of conditions that a reward should weigh more or less than the others, by name: factors, 1 where none is named."""
    default_parameters: ClassVar[dict[str, float]] = {}
    """Physical parameters that a user may set, by name, with their defaults."""

    def __init__(self, resolution: int | None = None, **parameters: float) -> None:
        """Raises ValueError on an odd or small resolution and on an unknown parameter."""
        resolution = self.default_resolution if resolution is None else resolution
        if resolution < 8 or resolution % 2:
            raise ValueError(f"resolution must be even and at least 8, got {resolution}")
        for name in parameters:
            if name not in self.default_parameters:
                raise ValueError(f"unknown parameter {name!r} of {self.env_id}; known: {sorted(self.default_parameters)}")
        self.resolution = resolution
        self.parameters = {**self.default_parameters, **{name: float(value) for name, value in parameters.items()}}

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

    @property
    def solved_together(self) -> int:
        """Samples that depend on each other: ids m k .. m k + m - 1, the windows of one trajectory, say. Default 1: none do."""
        return 1

    def augment(self, fields: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Random exact symmetries of the equation and of its data's law, for pretraining. Default: none."""
        return fields

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PDE) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[object, ...]:
        return type(self), self.resolution, tuple(sorted(self.parameters.items()))

    @property
    def input_channels(self) -> tuple[int, ...]:
        """Indices of ``inputs`` among the channels."""
        return tuple(self.channels.index(name) for name in self.inputs)

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


def relative_error(estimate: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """||estimate - truth|| / ||truth||, one value (b,) a sample."""
    return (estimate - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1).clamp_min(1e-12)


def register(cls: type[PDE]) -> type[PDE]:
    """Class decorator: make a PDE known under its ``env_id``, its environments to Gymnasium too.

    Raises ValueError if the id belongs to another class, or if the class leaves a part of the PDE undefined.
    """
    missing = sorted(set(cls.__abstractmethods__) | {name for name in REQUIRED if not hasattr(cls, name)})
    if missing:
        raise ValueError(f"{cls.__name__} cannot be registered: it does not define {', '.join(missing)}")
    strangers = sorted(set(cls.inputs) - set(cls.channels))
    if strangers:
        raise ValueError(f"{cls.__name__} cannot be registered: its inputs {strangers} are none of its channels {cls.channels}")
    REGISTRY.register(cls.env_id)(cls)
    if cls.env_id not in gymnasium.registry:
        gymnasium.register(
            id=cls.env_id,
            entry_point="envs.environments:DenoisingEnv",
            vector_entry_point="envs.environments:DenoisingVectorEnv",
            kwargs={"env_id": cls.env_id},
        )
    return cls


def make_pde(env_id: str, resolution: int | None = None, **parameters: float) -> PDE:
    """The PDE registered under ``env_id`` (such as ``Burgers-v0``), at the given or its default resolution and parameters."""
    if env_id not in REGISTRY:
        raise ValueError(f"{unknown('env', env_id, REGISTRY)}; your own: --env module:{env_id}, or PIRF_RAY_PDES=module")
    return REGISTRY[env_id](resolution, **parameters)
