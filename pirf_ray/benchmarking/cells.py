"""The benchmark's directory: finished cells, one JSON object a line, and the weights that trainings left.

``cells.jsonl`` is only ever appended to, by one process, a whole line at a time; a line that a killed process left half
written is dropped. ``plan.json`` is what the cells were measured with, ``weights/ENV/METHOD/SEED.safetensors`` what was
learned, ``samples/ENV/METHOD.h5`` a few samples for pictures.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from envs.pdes import PDE
from pirf_ray.benchmarking.plan import Plan
from pirf_ray.checkpoints import load_tensors, names_file, read_json, staged_file, write_json, write_tensors
from pirf_ray.config import ConfigError
from pirf_ray.evaluation.samples import read_samples, write_samples
from pirf_ray.runs import RunExistsError, held

Cell = dict[str, Any]
Key = tuple[str | int, ...]
IDENTITY = {"tune": ("trial",), "train": ("seed",), "evaluate": ("num_steps", "seed")}
"""What tells cells of one kind, PDE and method apart."""


def key_of(cell: Cell) -> Key:
    return (cell["kind"], cell["env"], cell["method"], *(cell[name] for name in IDENTITY[cell["kind"]]))


def file_name(method: str) -> str:
    """``module:name`` as part of a path."""
    return method.replace(":", "--").replace("/", "--")


class Benchmark:
    """Finished cells by key. One process at a time."""

    def __init__(self, root: Path, plan: Plan) -> None:
        self.root, self.plan = root, plan
        self._cells: dict[Key, Cell] = {}

    @classmethod
    def open(cls, root: Path, plan: Plan) -> "Benchmark":
        """Start one, or go on with the one that is there; ConfigError if that one was measured with another plan."""
        benchmark = cls(root, plan)
        stored = root / "plan.json"
        if stored.is_file():
            found, asked = read_json(stored), plan.to_json()
            changed = sorted(name for name in asked.keys() | found.keys() if asked.get(name) != found.get(name))
            if changed:
                flags = ", ".join(f"--{n.replace('_', '-')} {found.get(n)} there, {asked.get(n)} asked" for n in changed)
                raise ConfigError(f"--out {root}: its cells were measured with another plan: {flags}")
        elif root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise RunExistsError(f"--out {root}: holds something else than a benchmark")
        root.mkdir(parents=True, exist_ok=True)
        return benchmark

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory and read what is there; RunExistsError while another process holds it."""
        with held(self.root, "this benchmark"):
            if not (self.root / "plan.json").is_file():
                write_json(self.root / "plan.json", self.plan.to_json())
            self._read()
            yield

    @property
    def path(self) -> Path:
        return self.root / "cells.jsonl"

    def _read(self) -> None:
        if not self.path.is_file():
            return
        data = self.path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            os.truncate(self.path, len(whole))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                cell = json.loads(line)
                self._cells[key_of(cell)] = cell
            except (json.JSONDecodeError, KeyError, TypeError) as error:
                raise ConfigError(f"{self.path}, line {number}: not a cell of a benchmark ({error!r})") from None

    def add(self, cell: Cell) -> None:
        """Keep a finished cell; it is on the disk when this returns."""
        with names_file(self.path), self.path.open("a") as file:
            file.write(json.dumps(cell, sort_keys=True) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._cells[key_of(cell)] = cell

    def get(self, *key: str | int) -> Cell | None:
        return self._cells.get(key)

    def cells(self) -> list[Cell]:
        return list(self._cells.values())

    def trials(self, env: str, method: str) -> list[Cell]:
        """Finished trials, by number from 0 without a hole."""
        found: list[Cell] = []
        while (cell := self.get("tune", env, method, len(found))) is not None:
            found.append(cell)
        return found

    def _weights_path(self, env: str, method: str, seed: int) -> Path:
        return self.root / "weights" / env / file_name(method) / f"{seed}.safetensors"

    def save_weights(self, env: str, method: str, seed: int, weights: dict[str, torch.Tensor]) -> None:
        with staged_file(self._weights_path(env, method, seed)) as partial:
            write_tensors(partial, weights)

    def load_weights(self, env: str, method: str, seed: int) -> dict[str, torch.Tensor] | None:
        """What a training left; None if it is not there (any more)."""
        path = self._weights_path(env, method, seed)
        return load_tensors(path) if path.is_file() else None

    def save_samples(self, pde: PDE, method: str, fields: dict[str, torch.Tensor]) -> None:
        """A few samples (physical units) by group name."""
        path = self.root / "samples" / pde.env_id / f"{file_name(method)}.h5"
        write_samples(path, pde, fields, {"method": method})

    def samples(self, env: str, methods: list[str]) -> dict[tuple[str, str], Any]:
        """Arrays (n, c, h, w) by (env, group), of the methods that have some."""
        found: dict[tuple[str, str], Any] = {}
        for method in methods:
            path = self.root / "samples" / env / f"{file_name(method)}.h5"
            if path.is_file():
                found |= {(env, group): fields for group, fields in read_samples(path).items()}
        return found
