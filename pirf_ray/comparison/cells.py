"""Cells: the finished pieces of a benchmark's work. Each one is a JSON object on a line of ``cells.jsonl``.

A cell's ``kind`` is ``tune`` (a trial), ``train`` (a training) or ``evaluate``. Its measured numbers stand under ``figures``.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from envs.common.journals import Record
from pirf_ray.methods import Settings
from pirf_ray.metrics.cost import Cost
from pirf_ray.metrics.results import SetMetrics

Key = tuple[str | int, ...]
"""What tells cells apart: kind, PDE, method, and the numbers of its kind."""


@dataclass(frozen=True, kw_only=True)
class Cell(ABC):
    """What cells of every kind hold."""

    kind: ClassVar[str]
    """Name of the kind in JSON."""
    env: str
    """The PDE."""
    method: str
    """Name of the method."""
    settings: Settings
    """Settings of the method."""
    cost: Cost
    """Cost of the training, or per sample of the sampling."""
    failed: str = ""
    """Why the training failed; empty if it did not."""

    @property
    def key(self) -> Key:
        """Return the key of the cell."""
        return (self.kind, self.env, self.method, *self.identity)

    @property
    @abstractmethod
    def identity(self) -> tuple[int, ...]:
        """Return the numbers that tell cells of one kind, PDE and method apart."""

    @abstractmethod
    def content(self) -> Record:
        """Return what only this kind holds, by its JSON names."""

    @classmethod
    @abstractmethod
    def from_json(cls, record: Record) -> "Cell":
        """Read a cell of this kind. KeyError or TypeError if the record is none."""

    def to_json(self) -> Record:
        """Return the line of cells.jsonl."""
        shared = {"kind": self.kind, "env": self.env, "method": self.method, "settings": self.settings}
        failed = {"failed": self.failed} if self.failed else {}
        return {**shared, **self.content(), "cost": vars(self.cost), **failed}


def _shared(record: Record) -> dict[str, Any]:
    """Return the fields that every kind of cell has."""
    named = {name: record[name] for name in ("env", "method", "settings")}
    return {**named, "cost": Cost(**record["cost"]), "failed": record.get("failed", "")}


@dataclass(frozen=True, kw_only=True)
class TrialMetrics:
    """Measured numbers of a trial, on validation noise and data."""

    residual: float
    """Mean residual of the PDE's default operator."""
    energy_ratio: float
    """Energy distance to real data over the base model's, on the same noise."""
    amplitude_ratio: float
    """Standard deviation over real data's, of the channel where it is largest."""
    below_floor: bool
    """Whether the residual is below real data's."""

    def to_json(self) -> dict[str, Any]:
        """Return the numbers by their names."""
        return dict(vars(self))

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> "TrialMetrics":
        """Read the numbers back. TypeError if a name is missing or unknown."""
        return cls(**data)


@dataclass(frozen=True, kw_only=True)
class TrialCell(Cell):
    """A trial of a method's settings: a short training, judged on validation samples."""

    kind = "tune"
    trial: int
    """Number of the trial, from 0."""
    score: float
    """Score of the settings; lower is better."""
    metrics: TrialMetrics | None = None
    """Measured numbers; None for a training that failed."""
    sampling: Cost | None = None
    """Cost per validation sample."""

    @property
    def identity(self) -> tuple[int, ...]:
        return (self.trial,)

    def content(self) -> Record:
        made: Record = {"trial": self.trial, "score": self.score}
        if self.metrics is not None:
            made["figures"] = self.metrics.to_json()
        if self.sampling is not None:
            made["sampling"] = vars(self.sampling)
        return made

    @classmethod
    def from_json(cls, record: Record) -> "TrialCell":
        return cls(
            **_shared(record),
            trial=record["trial"],
            score=record["score"],
            metrics=TrialMetrics.from_json(record["figures"]) if "figures" in record else None,
            sampling=Cost(**record["sampling"]) if "sampling" in record else None,
        )


@dataclass(frozen=True, kw_only=True)
class TrainingCell(Cell):
    """A training with a method's best settings; its weights are a file of their own."""

    kind = "train"
    seed: int
    """Seed of the training."""
    budget: float | None = None
    """What it was allowed to spend, in network forwards; None for a training that failed."""

    @property
    def identity(self) -> tuple[int, ...]:
        return (self.seed,)

    def content(self) -> Record:
        return {"seed": self.seed} | ({} if self.budget is None else {"budget": self.budget})

    @classmethod
    def from_json(cls, record: Record) -> "TrainingCell":
        return cls(**_shared(record), seed=record["seed"], budget=record.get("budget"))


@dataclass(frozen=True, kw_only=True)
class Spectra:
    """Mean power of a set's channels by wavenumber, along the rows' and the columns' axis: each (channel, wavenumber)."""

    rows: list[list[float]]
    columns: list[list[float]]


@dataclass(frozen=True, kw_only=True)
class PDENames:
    """Names of what is measured of a PDE's fields."""

    operators: list[str]
    """Residual operators: the default, the unrewarded, the others."""
    default_operator: str
    unrewarded_operator: str
    conditions: list[str]
    channels: list[str]


@dataclass(frozen=True, kw_only=True)
class EvaluationCell(Cell):
    """The evaluation of a method at one N with one seed, and real data measured beside it."""

    kind = "evaluate"
    num_steps: int
    """N, steps of the sampler."""
    seed: int
    """Seed of training, noise and held-out data."""
    nfe: int
    """Network evaluations per sample of the plain sampler at this N."""
    samples: int
    """Samples of the set."""
    real: int
    """Held-out fields that it is compared with."""
    names: PDENames
    """Names of what is measured."""
    metrics: SetMetrics
    """Metrics of the method's samples."""
    data: SetMetrics
    """Metrics of real data."""
    spectra: Spectra
    """Spectra of the method's samples."""
    data_spectra: Spectra
    """Spectra of the held-out fields."""

    @property
    def identity(self) -> tuple[int, ...]:
        return (self.num_steps, self.seed)

    def content(self) -> Record:
        return {
            **{name: getattr(self, name) for name in ("num_steps", "seed", "nfe", "samples", "real")},
            **vars(self.names),
            "figures": self.metrics.to_json(),
            "data": self.data.to_json(),
            "spectra": vars(self.spectra),
            "data_spectra": vars(self.data_spectra),
        }

    @classmethod
    def from_json(cls, record: Record) -> "EvaluationCell":
        return cls(
            **_shared(record),
            **{name: record[name] for name in ("num_steps", "seed", "nfe", "samples", "real")},
            names=PDENames(**{name: record[name] for name in PDENames.__dataclass_fields__}),
            metrics=SetMetrics.from_json(record["figures"]),
            data=SetMetrics.from_json(record["data"]),
            spectra=Spectra(**record["spectra"]),
            data_spectra=Spectra(**record["data_spectra"]),
        )


KINDS: dict[str, type[Cell]] = {cell.kind: cell for cell in (TrialCell, TrainingCell, EvaluationCell)}


def read_cell(record: Record) -> Cell:
    """Read a cell of any kind. KeyError, TypeError or AttributeError if the record is none."""
    return KINDS[record["kind"]].from_json(record)
