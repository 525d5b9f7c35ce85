"""Tables of results: of one evaluation on the terminal, of several in Markdown; what is no result is named."""

import io
import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from envs.common.files import FileFormatError, write_json
from envs.pdes import PDE
from pirf_ray.evaluation.tables import SUMMARY_COLUMNS, read_result, result_table, summary_markdown, summary_row
from pirf_ray.metrics.evaluation import evaluate_sets
from pirf_ray.metrics.results import EvaluationResult, SamplerRecord


def rendered(result: EvaluationResult) -> str:
    stream = io.StringIO()
    Console(file=stream, width=160).print(result_table(result))
    return stream.getvalue()


def evaluated(pde: PDE, fields: dict[str, torch.Tensor], sets: Mapping[str, torch.Tensor]) -> EvaluationResult:
    return evaluate_sets(pde, sets, real=fields["real"], real_other=fields["data"])


def test_table_shows_every_set_and_the_roles_of_operators(pde: PDE, fields: dict[str, torch.Tensor]) -> None:
    more = {"guided": fields["base"], "base": fields["base"], "tuned": fields["tuned"]}
    text = rendered(evaluated(pde, fields, more))
    header = next(line for line in text.splitlines() if "metric" in line)
    positions = [header.index(name) for name in ("base", "tuned", "guided", "real data")]
    assert positions == sorted(positions)
    assert "residual consistent (rewarded)" in text
    assert "residual simpson (not rewarded)" in text
    assert text.index("consistent") < text.index("simpson") < text.index("paper")


def test_a_set_below_the_floor_is_named(pde: PDE, fields: dict[str, torch.Tensor], result: EvaluationResult) -> None:
    quiet = 1e-4 * torch.ones_like(fields["base"]) + 1e-8 * fields["base"]
    assert "below floor" in rendered(evaluated(pde, fields, {"tuned": quiet}))
    assert "below floor" not in rendered(result).replace("over floor", "")


def test_samples_that_are_not_finite_are_counted(pde: PDE, fields: dict[str, torch.Tensor]) -> None:
    broken = fields["tuned"].clone()
    broken[2, 0, 3, 4] = math.nan
    assert "1 not finite" in rendered(evaluated(pde, fields, {"tuned": broken}))


def test_corrected_samples_are_called_so(result: EvaluationResult) -> None:
    sampler = SamplerRecord(num_steps=20, solver="heun", nfe=39)
    assert "tuned, corrected" not in rendered(replace(result, sampler=sampler))
    assert "tuned, corrected" in rendered(replace(result, sampler=replace(sampler, corrections=20)))


def test_a_summary_leads_from_base_to_tuned_beside_real_data(result: EvaluationResult) -> None:
    made = replace(result, sampler=SamplerRecord(num_steps=20, solver="heun", nfe=39))
    cells = dict(zip(SUMMARY_COLUMNS, summary_row(made), strict=True))
    base, tuned, data = (m.residuals["consistent"].mean for m in made.sets.values())
    assert (cells["PDE"], cells["NFE"]) == ("Burgers 16²", "39")
    assert cells["`consistent` residual (floor)"] == f"{base:.3g} → {tuned:.3g} ({data:.2g})"
    assert cells["ratio"] == f"1/{base / tuned:.3g}"
    assert cells["unrewarded check (real data)"].startswith("simpson: ")
    assert cells["conditions"].startswith("initial_condition ")
    text = summary_markdown([made, made])
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and len({row.count(" | ") for row in rows}) == 1


def test_a_summary_names_a_tuned_model_below_the_floor(result: EvaluationResult) -> None:
    tuned = result["tuned"]
    hacked = replace(tuned.residuals["consistent"], below_floor=True)
    sets = {**result.sets, "tuned": replace(tuned, residuals={**tuned.residuals, "consistent": hacked})}
    assert "below floor!" in summary_markdown([replace(result, sets=sets)])
    assert "below floor!" not in summary_markdown([result])


def test_a_result_is_read_from_a_run_or_a_file(tmp_path: Path, result: EvaluationResult) -> None:
    write_json(tmp_path / "result.json", result.to_json())
    assert read_result(tmp_path) == read_result(tmp_path / "result.json") == result


def test_what_is_no_result_is_named(tmp_path: Path, result: EvaluationResult) -> None:
    file = tmp_path / "result.json"
    with pytest.raises(FileFormatError, match=r"result\.json: no such file"):
        read_result(tmp_path)
    write_json(file, {name: value for name, value in result.to_json().items() if name != "tuned"})
    with pytest.raises(FileFormatError, match=r"result\.json: holds no metrics of tuned"):
        read_result(file)
    broken = result.to_json()
    del broken["base"]["resolve/median"]
    write_json(file, broken)
    with pytest.raises(FileFormatError, match=r"result\.json: not the result of an evaluation \('resolve/median'\)"):
        read_result(file)
