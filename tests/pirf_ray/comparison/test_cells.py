"""Cells: typed, as JSON lines, and of version 0.1 as well."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from comparison_cells import evaluated, trained, tried
from envs.common.journals import Record
from pirf_ray.comparison.cells import Cell, EvaluationCell, TrainingCell, TrialCell, read_cell
from pirf_ray.metrics.cost import Cost

OLD = [json.loads(line) for line in (Path(__file__).parent / "cells_of_version_0_1.jsonl").read_text().splitlines()]
CELLS: list[Cell] = [
    tried("Burgers-v0", "draft-k", 3, 0.01, 1.2),
    replace(tried("Burgers-v0", "draft-k", 4, 0.01, 1.2), metrics=None, failed="too steep"),
    replace(tried("Burgers-v0", "draft-k", 5, math.inf, 1.2), sampling=Cost(network_forwards=5)),
    trained("Burgers-v0", "draft-k", 1),
    trained("Burgers-v0", "draft-k", 2, failed="too steep"),
    evaluated("Poisson-v0", "base", 10, 1, 0.1, 0.2),
    evaluated("Poisson-v0", "base", 10, 2, math.inf, 0.2),
]


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: "-".join(map(str, cell.key)))
def test_cells_come_back_from_json(cell: Cell) -> None:
    assert read_cell(json.loads(json.dumps(cell.to_json()))) == cell


def test_keys_tell_cells_apart() -> None:
    assert len({cell.key for cell in CELLS}) == len(CELLS)
    assert CELLS[0].key == ("tune", "Burgers-v0", "draft-k", 3)
    assert CELLS[3].key == ("train", "Burgers-v0", "draft-k", 1)
    assert CELLS[5].key == ("evaluate", "Poisson-v0", "base", 10, 1)


@pytest.mark.parametrize("record", OLD, ids=lambda record: "-".join((record["kind"], record.get("failed", "done"))))
def test_cells_of_version_0_1_are_read_and_written_as_they_were(record: Record) -> None:
    assert json.loads(json.dumps(read_cell(record).to_json())) == record


def test_cells_of_version_0_1_hold_what_they_say() -> None:
    tune, train, failed_tune, failed_train, evaluate = map(read_cell, OLD)
    assert isinstance(tune, TrialCell) and tune.metrics is not None
    assert tune.metrics.energy_ratio == OLD[0]["figures"]["energy_ratio"]
    assert isinstance(train, TrainingCell) and train.budget == 1500
    assert (failed_tune.failed, failed_train.failed) == ("too steep", "too steep")
    assert isinstance(evaluate, EvaluationCell)
    assert evaluate.metrics.residuals["simpson"].median == OLD[4]["figures"]["residual/simpson/median"]
    assert evaluate.names.operators == ["consistent", "simpson", "paper"]
    assert evaluate.metrics.fidelity.nearest_training_distance is None


@pytest.mark.parametrize("missing", ["kind", "env", "settings", "cost", "figures", "data_spectra", "num_steps", "operators"])
def test_a_record_without_a_part_is_no_cell(missing: str) -> None:
    record = {name: value for name, value in OLD[4].items() if name != missing}
    with pytest.raises(KeyError, match=missing):
        read_cell(record)
