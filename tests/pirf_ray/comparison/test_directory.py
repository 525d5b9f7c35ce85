"""The benchmark's directory: cells that survive a kill, one process, one plan."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from comparison_cells import PLAN, benchmark_at, trained, tried
from envs.common.checks import ConfigError
from envs.common.files import DirectoryTakenError, FileFormatError
from pirf_ray.comparison.directory import BenchmarkDirectory


def test_cells_come_back_and_a_half_written_line_is_dropped(tmp_path: Path) -> None:
    with benchmark_at(tmp_path) as first:
        first.add(trained("Burgers-v0", "base", 0))
        first.add(replace(trained("Burgers-v0", "base", 1), budget=math.inf))
    with first.journal.path.open("a") as file:
        file.write('{"kind": "train", "env": "Bur')
    with benchmark_at(tmp_path) as second:
        assert [cell.key[-1] for cell in second.cells()] == [0, 1]
        assert second.training("Burgers-v0", "base", 1).budget == math.inf
        second.add(trained("Burgers-v0", "base", 2))
    lines = second.journal.path.read_text().splitlines()
    assert [json.loads(line)["seed"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize("line", ['{"kind": "cake"}', "{}", '{"kind": "train", "env": "Burgers-v0"}', '{"kind": ["train"]}'])
def test_a_line_that_is_no_cell_is_named(tmp_path: Path, line: str) -> None:
    with benchmark_at(tmp_path) as directory:
        directory.add(trained("Burgers-v0", "base"))
    with directory.journal.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ConfigError, match=r"cells\.jsonl, line 2: not a cell of a benchmark"), benchmark_at(tmp_path):
        pass


@pytest.mark.parametrize("line", ['{"kind": "tr', "[1, 2]"])
def test_a_line_that_is_no_json_object_is_named(tmp_path: Path, line: str) -> None:
    with benchmark_at(tmp_path) as directory:
        directory.add(trained("Burgers-v0", "base"))
    with directory.journal.path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(FileFormatError, match=r"cells\.jsonl, line 2: (not JSON|holds a list)"), benchmark_at(tmp_path):
        pass


def test_one_process_and_one_plan(tmp_path: Path) -> None:
    with benchmark_at(tmp_path):
        with pytest.raises(DirectoryTakenError, match="another process"), benchmark_at(tmp_path):
            pass
        with pytest.raises(ConfigError, match="--trials 3 there, 4 asked"), benchmark_at(tmp_path, replace(PLAN, trials=4)):
            pass
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").touch()
    with pytest.raises(DirectoryTakenError, match="something else"):
        BenchmarkDirectory.open(tmp_path / "other", PLAN)


def test_trials_have_no_hole(tmp_path: Path) -> None:
    with benchmark_at(tmp_path) as directory:
        for trial in (0, 1, 3):
            directory.add(tried("Burgers-v0", "draft-k", trial, 0.01, 1.0))
        assert [cell.trial for cell in directory.trials("Burgers-v0", "draft-k")] == [0, 1]
        assert directory.trials("Burgers-v0", "draft-lv") == []


def test_weights_of_a_users_method_have_a_file(tmp_path: Path) -> None:
    with benchmark_at(tmp_path) as directory:
        assert directory.load_weights("Burgers-v0", "mine:shrunk", 0) is None
        directory.save_weights("Burgers-v0", "mine:shrunk", 0, {"w": torch.arange(3.0)})
        assert directory.load_weights("Burgers-v0", "mine:shrunk", 0)["w"].tolist() == [0, 1, 2]
    assert (directory.root / "weights/Burgers-v0/mine--shrunk/0.safetensors").is_file()
