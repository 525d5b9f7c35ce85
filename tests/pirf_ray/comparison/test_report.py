"""The benchmark's report, from made-up cells: means, intervals, ratios, ranks, tables, pictures, the page."""

import json
import math
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from comparison_cells import FLOOR, evaluated, header, trained, tried
from pirf_ray.comparison.aggregate import aggregate, over_seeds
from pirf_ray.comparison.cells import Cell
from pirf_ray.comparison.report import write_report
from pirf_ray.comparison.tables import markdown

ENVS = ("Burgers-v0", "Poisson-v0")
METHODS = ("base", "cocogen", "draft-k", "pirf-ray")
RESIDUALS = {"base": 0.1, "cocogen": 0.01, "draft-k": 0.002, "pirf-ray": 0.005}
ENERGIES = {"base": 0.1, "cocogen": 0.1, "draft-k": 0.2, "pirf-ray": 0.101}


def benchmark_cells() -> list[Cell]:
    """Residuals of seed 1 are three times those of seed 0; DRaFT-K has the lowest and has left the data."""
    cells = [
        evaluated(env, method, steps, seed, RESIDUALS[method] * (1 + 2 * seed), ENERGIES[method])
        for env in ENVS
        for method in METHODS
        for steps in (10, 20)
        for seed in (0, 1)
    ]
    return cells + [trained(env, "draft-k") for env in ENVS] + [tried("Burgers-v0", "draft-k", 0, 0.01, 1.2)]


def here(cells: list[Cell], steps: str = "20") -> dict:
    return aggregate(cells, header(ENVS, METHODS))["envs"]["Burgers-v0"]["steps"][steps]


def test_means_and_intervals_over_seeds() -> None:
    """Of 1 and 3: mean 2, standard deviation sqrt 2, Student's 97.5% quantile with one degree of freedom 12.706."""
    figure = over_seeds([1.0, 3.0])
    assert figure["mean"] == 2
    assert figure["interval"] == pytest.approx([2 - 12.706, 2 + 12.706], abs=1e-2)
    residual = here(benchmark_cells())["methods"]["cocogen"]["figures"]["residual/consistent/mean"]
    assert residual["mean"] == pytest.approx(0.02) and residual["values"] == pytest.approx([0.01, 0.03])


def test_a_single_seed_keeps_the_interval_over_samples() -> None:
    one = [c for c in benchmark_cells() if c.get("seed") == 0]
    assert here(one)["methods"]["base"]["figures"]["residual/consistent/mean"]["interval"] == [0.05, 0.2]


def test_ratios_are_to_the_base_of_the_same_seed() -> None:
    figures = here(benchmark_cells())["methods"]["pirf-ray"]["figures"]
    assert figures["residual_ratio"]["values"] == pytest.approx([0.05, 0.05])
    assert figures["energy_ratio"]["mean"] == pytest.approx(1.01)


def test_the_first_is_the_lowest_inside_the_limit() -> None:
    part = here(benchmark_cells())
    assert part["first"] == ["pirf-ray"]
    assert part["ranks"] == {"pirf-ray": 1, "cocogen": 2, "base": 3}
    assert not part["methods"]["draft-k"]["within_guard"]


def test_under_the_floor_is_never_first_and_at_the_floor_is_shared() -> None:
    cells = [c for c in benchmark_cells() if c["method"] not in ("draft-k", "cocogen")]
    hacked = evaluated("Burgers-v0", "draft-k", 20, 0, FLOOR / 2, 0.1, below_floor=True)
    exact = [
        evaluated("Burgers-v0", "cocogen", 20, 0, FLOOR * 0.99, 0.1),
        evaluated("Burgers-v0", "pirf-ray", 20, 0, FLOOR * 1.04, 0.1),
    ]
    part = here([c for c in cells if c["method"] == "base"] + [hacked, *exact])
    assert sorted(part["first"]) == ["cocogen", "pirf-ray"]
    assert "draft-k" not in part["ranks"] and part["methods"]["draft-k"]["below_floor"]


@pytest.mark.parametrize(("ratio", "first"), [(1.009, ["cocogen", "pirf-ray"]), (1.02, ["cocogen"])])
def test_what_differs_by_less_than_seeds_do_is_equal(ratio: float, first: list[str]) -> None:
    base = [c for c in benchmark_cells() if c["method"] == "base"]
    pair = [
        evaluated("Burgers-v0", method, 20, 0, value * 100 * FLOOR, 0.1)
        for method, value in (("cocogen", 1), ("pirf-ray", ratio))
    ]
    assert sorted(here([*base, *pair])["first"]) == first


def test_a_residual_that_is_not_finite_has_no_rank() -> None:
    cells = [*benchmark_cells(), evaluated("Burgers-v0", "cocogen", 20, 0, math.inf, 0.1)]
    assert "cocogen" not in here(cells)["ranks"]


def test_what_is_missing_is_named() -> None:
    cells = [c for c in benchmark_cells() if (c["env"], c["method"]) != ("Poisson-v0", "draft-k")]
    failed = {**trained("Poisson-v0", "draft-k"), "failed": "too steep"}
    missing = aggregate([*cells, failed], header(ENVS, METHODS))["missing"]
    assert missing == ["Poisson-v0 draft-k at N = 10, 20 (too steep)"]


def test_markdown_holds_every_method_and_marks() -> None:
    text = markdown(aggregate(benchmark_cells(), header(ENVS, METHODS)))
    summary = text.split("**N = 20 (39 NFE)**")[1].split("**N = 10")[0]
    assert "| pirf_ray (default) | **0.05, 1.01** | **0.05, 1.01** |" in summary
    assert "| DRaFT-K | 0.02, 2 † | 0.02, 2 † |" in summary
    assert "| base | 1, 1 | 1, 1 |" in summary
    detail = text.split("**Burgers-v0, N = 20")[1].split("**Poisson")[0]
    for label in ("witness: simpson", "paper operator", "wall", "MMSE", "SMSE", "nearest training", "samples/s", "real data"):
        assert label in detail
    columns = {line.count(" | ") for line in detail.splitlines() if line.startswith("| ")}
    assert len(columns) == 1


class Wellformed(HTMLParser):
    """Every tag that is opened is closed, in order; collects addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def samples() -> dict[tuple[str, str], np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"Burgers-v0": (3, 1, 32, 32), "Poisson-v0": (3, 2, 32, 32)}
    return {
        (env, row): rng.standard_normal(shapes[env]).astype(np.float32) for env in ENVS for row in ("data", "base", "pirf-ray")
    }


def test_the_report_is_written_whole(tmp_path: Path) -> None:
    hostile = [{**c, "method": "<script>alert(1)</script>"} for c in benchmark_cells() if c["method"] == "cocogen"]
    names = (*METHODS, "<script>alert(1)</script>")
    files = write_report(tmp_path, benchmark_cells() + hostile, header(ENVS, names), samples())
    text = files["page"].read_text()
    page = Wellformed()
    page.feed(text)
    assert page.open == []
    assert len(page.addresses) == 5 and all(a.startswith("data:image/png;base64,") for a in page.addresses)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert json.loads(files["figures"].read_text())["envs"]["Poisson-v0"]["steps"]["10"]["first"] == ["pirf-ray"]
    for name in ("frontier", "nfe", "spectra", "gallery-Burgers-v0", "gallery-Poisson-v0"):
        picture = matplotlib.image.imread(files[name])
        assert picture.shape[0] > 300 and picture[..., :3].std() > 0.02
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in files.values())


def test_an_unfinished_benchmark_has_a_report(tmp_path: Path) -> None:
    only_base = [c for c in benchmark_cells() if c["method"] == "base" and c["env"] == "Burgers-v0"]
    files = write_report(tmp_path, only_base, header(ENVS, METHODS), {})
    assert "Poisson-v0 pirf-ray at N = 10, 20" in files["tables"].read_text()
    assert files["frontier"].is_file()
    nothing = write_report(tmp_path, [], header(ENVS, METHODS), {})
    assert "Not finished" in nothing["page"].read_text()
