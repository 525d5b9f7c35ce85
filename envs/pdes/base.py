"""The PDE seam: definition, solver, residuals and re-solve. Each PDE has a file of its own."""

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
    """An equation on a grid. All fields of this class are (b, c, h, w) in physical units."""

    env_id: ClassVar[str]
    """Name of the PDE in the registry and of its Gymnasium environments, such as ``Burgers-v0``."""
    equation: ClassVar[str]
    """Equation and boundary conditions, as text."""
    channels: ClassVar[tuple[str, ...]]
    """Names of the channels, in order."""
    units: ClassVar[str]
    """Units of the channels and axes, as text."""
    solver: ClassVar[str]
    """Method of the solver, as text."""
    default_operator: ClassVar[str]
    """Operator that rewards use if no other operator is named."""
    unrewarded_operator: ClassVar[str]
    """Operator of the unrewarded check: another discretization, which no default reward uses and every evaluation reports."""
    default_resolution: ClassVar[int]
    """Rows and columns of the grid if no resolution is given."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """Channels that the equation takes as given. The other channels are its solution."""
    condition_weights: ClassVar[dict[str, float]] = {}
    """Factors of single conditions in a reward, by name. A condition without an entry has the factor 1."""
    default_parameters: ClassVar[dict[str, float]] = {}
    """Physical parameters that a user may set, by name, with their default values."""

    def __init__(self, resolution: int | None = None, **parameters: float) -> None:
        """Set the resolution and the physical parameters.

        ValueError if the resolution is odd or below 8, or if a parameter is unknown.
        """
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
    def grid(self) -> Grid:
        """The grid of the fields."""

    @property
    @abstractmethod
    def normalizer(self) -> Normalizer:
        """The conversion between physical and model units."""

    @abstractmethod
    def solve(self, seed: int, stream: str, sample_ids: Sequence[int]) -> torch.Tensor:
        """Return exact data (len(sample_ids), c, h, w), float64, as a function of the seed, the stream and the ids alone."""

    @property
    @abstractmethod
    def operators(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The residual operators by name: functions of fields that return a residual map (b, k, h', w').

        A residual map has the rows and columns on which the operator is defined.
        """

    @property
    def conditions(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The conditions on walls, initial state and so on, by name: functions of fields that return a violation (b,).

        The violation is 0 if the condition holds.
        """
        return {}

    @abstractmethod
    def resolve(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the solver's fields (b, c, h, w) for the inputs of each sample."""

    @abstractmethod
    def resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the relative L2 error (b,) of the solution in each sample against the re-solved solution."""

    @abstractmethod
    def trivial_resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the relative L2 error (b,) of the trivial competitor (persistence, zero) against the re-solved solution."""

    @abstractmethod
    def marginal(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the part (b, ...) of the fields whose law is known: the coefficient, source or initial condition."""

    @property
    def solved_together(self) -> int:
        """The number m of samples that depend on each other: ids m k .. m k + m - 1, such as the windows of a trajectory.

        The default is 1: all samples are independent.
        """
        return 1

    def augment(self, fields: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
        """Return the fields, each moved by a random exact symmetry of the equation and of the law of its data.

        The default is no symmetry.
        """
        return fields

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PDE) and self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def _identity(self) -> tuple[object, ...]:
        return type(self), self.resolution, tuple(sorted(self.parameters.items()))

    @property
    def input_channels(self) -> tuple[int, ...]:
        """Indices of the inputs among the channels."""
        return tuple(self.channels.index(name) for name in self.inputs)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of a sample."""
        return (len(self.channels), *self.grid.shape)

    def residual_map(self, fields: torch.Tensor, operator: str) -> torch.Tensor:
        """Return the residual map (b, k, h', w') of the named operator. ValueError if the name or the shape is wrong."""
        self.check_fields(fields)
        if operator not in self.operators:
            raise ValueError(f"unknown operator {operator!r} of {self.env_id}; known: {sorted(self.operators)}")
        return self.operators[operator](fields)

    def residual(self, fields: torch.Tensor, operator: str) -> torch.Tensor:
        """Return the mean square residual (b,) of the named operator."""
        return self.residual_map(fields, operator).square().flatten(1).mean(1)

    def check_fields(self, fields: torch.Tensor) -> None:
        """Raise ValueError unless the fields have the shape (b, c, h, w) of this PDE."""
        if fields.ndim != 4 or tuple(fields.shape[1:]) != self.shape:
            raise ValueError(f"{self.env_id} expects fields (b, {', '.join(map(str, self.shape))}), got {tuple(fields.shape)}")


def relative_error(estimate: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return ||estimate - truth|| / ||truth|| (b,), one value per sample."""
    error: torch.Tensor = (estimate - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1).clamp_min(1e-12)
    return error


def register(cls: type[PDE]) -> type[PDE]:
    """Register a PDE class under its ``env_id``, and its environments with Gymnasium. Use it as a class decorator.

    ValueError if the id belongs to another class, or if the class leaves a part of the PDE undefined.
    """
    missing = sorted(set(cls.__abstractmethods__) | {name for name in REQUIRED if not hasattr(cls, name)})
    if missing:
        raise ValueError(f"{cls.__name__} cannot be registered: it does not define {', '.join(missing)}")
    strangers = sorted(set(cls.inputs) - set(cls.channels))
    if strangers:
        raise ValueError(f"{cls.__name__} cannot be registered: its inputs {strangers} are not among its channels {cls.channels}")
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
    """Return the PDE registered under ``env_id``, such as ``Burgers-v0``.

    Arguments that are not given have the PDE's defaults. ValueError if the id is unknown.
    """
    if env_id not in REGISTRY:
        raise ValueError(f"{unknown('env', env_id, REGISTRY)}; your own: --env module:{env_id}, or PIRF_RAY_PDES=module")
    return REGISTRY[env_id](resolution, **parameters)
