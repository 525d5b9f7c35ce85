"""The PDE seam: definition, solver, residuals and re-solve. Each PDE has a file of its own.

A PDE may lack a solver, residual operators and the other parts of ``OPTIONAL``. Whatever needs such a part calls ``require``.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import gymnasium
import numpy as np
import torch

from envs.common.checks import ConfigError
from envs.common.registry import Registry, unknown
from envs.numerics.gaussian import GaussianLaw
from envs.numerics.grids import Grid
from envs.numerics.normalization import Normalizer

REGISTRY: Registry[type["PDE"]] = Registry("env")
REQUIRED = ("env_id", "equation", "channels", "units", "default_resolution")
"""Class attributes that a PDE must define."""
OPTIONAL = {
    "solve": "solver",
    "resolve": "solver for given inputs",
    "resolve_error": "re-solve error",
    "trivial_resolve_error": "trivial competitor",
    "marginal": "part of known law",
    "solution": "solution operator",
    "adjoint": "adjoint solver",
    "operators": "residual operator",
    "law": "Gaussian law",
}
"""Parts that a PDE may leave out, by the names of its members, in the words of messages."""
NO_SOLVER = "none"
"""Text of the solver of a PDE that has none."""


class NotProvided(ConfigError):
    """An error about a part that a PDE leaves out. Its message names the PDE, the part and what needs the part."""


class PDE(ABC):
    """An equation on a grid, or a law of fields that is known by samples only.

    All fields of this class are (b, c, h, w) in physical units. The members of ``OPTIONAL`` raise NotProvided, or are empty,
    unless a class overrides them.
    """

    required: ClassVar[tuple[str, ...]] = REQUIRED
    """Class attributes that a registered class must define."""
    env_id: ClassVar[str]
    """Name of the PDE in the registry and of its Gymnasium environments, such as ``Burgers-v0``."""
    equation: ClassVar[str]
    """Equation and boundary conditions, as text."""
    channels: ClassVar[tuple[str, ...]]
    """Names of the channels, in order."""
    units: ClassVar[str]
    """Units of the channels and axes, as text."""
    solver: ClassVar[str] = NO_SOLVER
    """Method of the solver, as text."""
    default_operator: ClassVar[str] = ""
    """Operator that rewards use if no other operator is named. Empty: the PDE has no operators."""
    unrewarded_operator: ClassVar[str] = ""
    """Operator of the unrewarded check: another discretization, which no default reward uses and every evaluation reports.

    Empty: the PDE has no such operator.
    """
    default_resolution: ClassVar[int]
    """Rows and columns of the grid if no resolution is given."""
    inputs: ClassVar[tuple[str, ...]] = ()
    """Channels that the equation takes as given. The other channels are its solution."""
    condition_weights: ClassVar[dict[str, float]] = {}
    """Factors of single conditions in a reward, by name. A condition without an entry has the factor 1."""
    constants: ClassVar[dict[str, tuple[float, float]]] = {}
    """Floor and reference of reward terms by name. A term without an entry is measured on exact data."""
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

    @property
    def law(self) -> GaussianLaw | None:
        """The law of the fields in model units if it is known and Gaussian, else None."""
        return None

    def solve(self, seed: int, stream: str, sample_ids: Sequence[int]) -> torch.Tensor:
        """Return exact data (len(sample_ids), c, h, w), float64, as a function of the seed, the stream and the ids alone."""
        raise _lacks(self, "solve")

    def available(self, stream: str) -> int | None:
        """Return the number of different samples that ``solve`` has of a stream, or None if there is no limit."""
        return None

    @property
    def operators(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The residual operators by name: functions of fields that return a residual map (b, k, h', w').

        A residual map has the rows and columns on which the operator is defined. The default is no operator.
        """
        return {}

    @property
    def conditions(self) -> dict[str, Callable[[torch.Tensor], torch.Tensor]]:
        """The conditions on walls, initial state and so on, by name: functions of fields that return a violation (b,).

        The violation is 0 if the condition holds.
        """
        return {}

    def resolve(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the solver's fields (b, c, h, w) for the inputs of each sample."""
        raise _lacks(self, "resolve")

    def resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the relative L2 error (b,) of the solution in each sample against the re-solved solution."""
        raise _lacks(self, "resolve_error")

    def trivial_resolve_error(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the relative L2 error (b,) of the trivial competitor (persistence, zero) against the re-solved solution."""
        raise _lacks(self, "trivial_resolve_error")

    def marginal(self, fields: torch.Tensor) -> torch.Tensor:
        """Return the part (b, ...) of the fields whose law is known: the coefficient, source or initial condition."""
        raise _lacks(self, "marginal")

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

    def provides(self, name: str) -> bool:
        """Return whether the PDE has the named part of ``OPTIONAL``. ValueError if the name is unknown."""
        if name not in OPTIONAL:
            raise ValueError(unknown("part of a PDE", name, OPTIONAL))
        if name == "operators":
            return bool(self.operators)
        if name == "law":
            return self.law is not None
        own = getattr(type(self), name, None)
        return own is not None and own is not getattr(PDE, name, None)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PDE) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def identity(self) -> tuple[object, ...]:
        """Values that decide the data and the residuals. PDEs with equal identities are equal."""
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
        """Return the residual map (b, k, h', w') of the named operator.

        ValueError if the name or the shape is wrong. NotProvided if the PDE has no operators.
        """
        self.check_fields(fields)
        operators = self.operators
        if not operators:
            raise _lacks(self, "operators", ": a residual needs one")
        if operator not in operators:
            raise ValueError(f"unknown operator {operator!r} of {self.env_id}; known: {sorted(operators)}")
        return operators[operator](fields)

    def residual(self, fields: torch.Tensor, operator: str) -> torch.Tensor:
        """Return the mean square residual (b,) of the named operator."""
        return self.residual_map(fields, operator).square().flatten(1).mean(1)

    def check_fields(self, fields: torch.Tensor) -> None:
        """Raise ValueError unless the fields have the shape (b, c, h, w) of this PDE."""
        if fields.ndim != 4 or tuple(fields.shape[1:]) != self.shape:
            raise ValueError(f"{self.env_id} expects fields (b, {', '.join(map(str, self.shape))}), got {tuple(fields.shape)}")


def _lacks(pde: PDE, name: str, need: str = "") -> NotProvided:
    return NotProvided(f"{pde.env_id} has no {OPTIONAL[name]} ({name}){need}")


def require(pde: PDE, name: str, what: str, instead: str = "") -> None:
    """Raise NotProvided unless the PDE has the named part of ``OPTIONAL``.

    ``what`` needs the part. ``instead``: what the user can do without it. The message reads
    ``Heat-v0 has no solver (solve): WHAT needs one; INSTEAD``.
    """
    if not pde.provides(name):
        raise _lacks(pde, name, f": {what} needs one" + (f"; {instead}" if instead else ""))


def relative_error(estimate: torch.Tensor, truth: torch.Tensor) -> torch.Tensor:
    """Return ||estimate - truth|| / ||truth|| (b,), one value per sample."""
    error: torch.Tensor = (estimate - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1).clamp_min(1e-12)
    return error


def register(cls: type[PDE]) -> type[PDE]:
    """Register a PDE class under its ``env_id``, and its environments with Gymnasium. Use it as a class decorator.

    ValueError if the id belongs to another class, or if the class leaves a part of the PDE undefined.
    """
    missing = sorted(set(cls.__abstractmethods__) | {name for name in cls.required if not getattr(cls, name, "")})
    if cls.solve is not PDE.solve and cls.solver == NO_SOLVER:
        missing.append("solver (it defines solve)")
    if cls.operators is not PDE.operators and not cls.default_operator:
        missing.append("default_operator (it defines operators)")
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
