"""The benchmark's directory: finished cells, and the weights that trainings left.

``plan.json`` holds the plan that the cells were measured with, ``cells.jsonl`` a cell per line,
``weights/ENV/METHOD/SEED.safetensors`` what was learned, and ``samples/ENV/METHOD.h5`` a few samples for plots.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch

from envs.common.checks import ConfigError, flag
from envs.common.files import DirectoryTakenError, locked, read_json, staged_file, write_json
from envs.common.journals import Journal
from envs.pdes import PDE
from pirf_ray.comparison.cells import Cell, EvaluationCell, Key, TrainingCell, TrialCell, read_cell
from pirf_ray.comparison.plan import Plan
from pirf_ray.diffusion.checkpoints import load_tensors, write_tensors
from pirf_ray.evaluation.samples import read_samples, write_samples
from pirf_ray.methods import Weights

Samples = Mapping[tuple[str, str], np.ndarray]
"""Arrays (n, c, h, w), physical units, by PDE and by method or ``data``."""


def file_name(method: str) -> str:
    """Return ``module:name`` as part of a path."""
    return method.replace(":", "--").replace("/", "--")


class BenchmarkDirectory:
    """Finished cells by key. One process at a time has them."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self.root, self.plan = root, plan
        self.journal = Journal(root / "cells.jsonl")
        self._cells: dict[Key, Cell] = {}

    @property
    def plan_file(self) -> Path:
        """Return the file of the plan."""
        return self.root / "plan.json"

    @classmethod
    def open(cls, root: Path, plan: Plan) -> "BenchmarkDirectory":
        """Start a benchmark, or continue the one that is there; ConfigError if its cells were measured with another plan."""
        directory = cls(root, plan)
        if directory.plan_file.is_file():
            found, asked = read_json(directory.plan_file), plan.to_json()
            changed = sorted(name for name in asked.keys() | found.keys() if asked.get(name) != found.get(name))
            if changed:
                flags = ", ".join(f"{flag(name)} {found.get(name)} there, {asked.get(name)} asked" for name in changed)
                raise ConfigError(f"--out {root}: its cells were measured with another plan: {flags}")
        elif root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise DirectoryTakenError(f"--out {root}: holds something else than a benchmark")
        root.mkdir(parents=True, exist_ok=True)
        return directory

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the directory and read what is there; DirectoryTakenError if another process has it."""
        with locked(self.root, "this benchmark"):
            if not self.plan_file.is_file():
                write_json(self.plan_file, self.plan.to_json())
            self._read()
            yield

    def _read(self) -> None:
        self.journal.repair()
        for number, record in enumerate(self.journal.records(), start=1):
            try:
                cell = read_cell(record)
            except (KeyError, TypeError, AttributeError) as error:
                raise ConfigError(f"{self.journal.path}, line {number}: not a cell of a benchmark ({error!r})") from None
            self._cells[cell.key] = cell

    def add(self, cell: Cell) -> None:
        """Keep a finished cell; it is on the disk when this returns."""
        self.journal.append(cell.to_json(), durable=True)
        self._cells[cell.key] = cell

    def cells(self) -> list[Cell]:
        """Return every cell, in the order in which they were finished."""
        return list(self._cells.values())

    def trials(self, env: str, method: str) -> list[TrialCell]:
        """Return the finished trials, by number from 0 without a hole."""
        found: list[TrialCell] = []
        while isinstance(cell := self._cells.get((TrialCell.kind, env, method, len(found))), TrialCell):
            found.append(cell)
        return found

    def training(self, env: str, method: str, seed: int) -> TrainingCell | None:
        """Return the finished training; None if there is none."""
        cell = self._cells.get((TrainingCell.kind, env, method, seed))
        return cell if isinstance(cell, TrainingCell) else None

    def evaluation(self, env: str, method: str, num_steps: int, seed: int) -> EvaluationCell | None:
        """Return the finished evaluation; None if there is none."""
        cell = self._cells.get((EvaluationCell.kind, env, method, num_steps, seed))
        return cell if isinstance(cell, EvaluationCell) else None

    def _weights_file(self, env: str, method: str, seed: int) -> Path:
        return self.root / "weights" / env / file_name(method) / f"{seed}.safetensors"

    def save_weights(self, env: str, method: str, seed: int, weights: Weights) -> None:
        """Write what a training learned."""
        with staged_file(self._weights_file(env, method, seed)) as partial:
            write_tensors(partial, weights)

    def load_weights(self, env: str, method: str, seed: int) -> Weights | None:
        """Return what a training learned; None if the file is missing."""
        path = self._weights_file(env, method, seed)
        return load_tensors(path) if path.is_file() else None

    def _samples_file(self, env: str, method: str) -> Path:
        return self.root / "samples" / env / f"{file_name(method)}.h5"

    def save_samples(self, pde: PDE, method: str, fields: dict[str, torch.Tensor]) -> None:
        """Write a few samples (physical units) by group name."""
        write_samples(self._samples_file(pde.env_id, method), pde, fields, {"method": method})

    def samples(self, env: str, methods: Sequence[str]) -> Samples:
        """Return the kept samples of the methods that have some."""
        found: dict[tuple[str, str], np.ndarray] = {}
        for method in methods:
            path = self._samples_file(env, method)
            if path.is_file():
                found |= {(env, group): fields for group, fields in read_samples(path).items()}
        return found
