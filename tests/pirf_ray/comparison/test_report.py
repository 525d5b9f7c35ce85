"""The benchmark's report, from made-up cells: means, intervals, ratios, ranks, tables, plots, the page."""

import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest

from comparison_cells import FLOOR, evaluated, header, trained, tried
from pirf_ray.comparison.aggregate import aggregate
from pirf_ray.comparison.cells import Cell, EvaluationCell
from pirf_ray.comparison.report import write_report
from pirf_ray.comparison.summaries import StepReport, mean_residual, over_seeds
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


def here(cells: list[Cell], num_steps: int = 20) -> StepReport:
    return aggregate(cells, header(ENVS, METHODS)).envs["Burgers-v0"].steps[num_steps]


def of_base() -> list[Cell]:
    return [c for c in benchmark_cells() if c.method == "base"]


def test_means_and_intervals_over_seeds() -> None:
    """Of 1 and 3: mean 2, standard deviation sqrt 2, Student's 97.5% quantile with one degree of freedom 12.706."""
    summary = over_seeds([1.0, 3.0])
    assert summary.mean == 2
    assert summary.interval == pytest.approx((2 - 12.706, 2 + 12.706), abs=1e-2)
    entry = here(benchmark_cells()).methods["cocogen"]
    assert entry.residual.mean == pytest.approx(0.02) and entry.residual.values == pytest.approx([0.01, 0.03])
    assert entry.summary(mean_residual("consistent")) == entry.residual


def test_infinite_values_have_a_mean_and_no_interval() -> None:
    assert over_seeds([1.0, math.inf]).to_json() == {"mean": math.inf, "values": [1.0, math.inf], "interval": None}
    assert math.isnan(over_seeds([]).mean)


def test_a_single_seed_keeps_the_interval_over_samples() -> None:
    one = here([c for c in benchmark_cells() if isinstance(c, EvaluationCell) and c.seed == 0])
    assert one.methods["base"].residual.interval == (0.05, 0.2)
    figures = one.to_json()["methods"]["base"]["figures"]
    assert figures["residual/consistent/mean"] == {"mean": 0.1, "values": [0.1], "interval": [0.05, 0.2]}
    assert figures["resolve/median"]["interval"] == pytest.approx([0.1**0.5 / 2, 0.1**0.5 * 2])
    assert figures["fidelity/energy_distance"]["interval"] is None


def test_ratios_are_to_the_base_of_the_same_seed() -> None:
    entry = here(benchmark_cells()).methods["pirf-ray"]
    assert entry.residual_ratio.values == pytest.approx([0.05, 0.05])
    assert entry.energy_ratio.mean == pytest.approx(1.01)


def test_the_first_is_the_lowest_inside_the_limit() -> None:
    part = here(benchmark_cells())
    assert part.first == ["pirf-ray"]
    assert part.ranks == {"pirf-ray": 1, "cocogen": 2, "base": 3}
    assert not part.methods["draft-k"].within_guard


def test_under_the_floor_is_never_first_and_at_the_floor_is_shared() -> None:
    hacked = evaluated("Burgers-v0", "draft-k", 20, 0, FLOOR / 2, 0.1, below_floor=True)
    exact = [
        evaluated("Burgers-v0", "cocogen", 20, 0, FLOOR * 0.99, 0.1),
        evaluated("Burgers-v0", "pirf-ray", 20, 0, FLOOR * 1.04, 0.1),
    ]
    part = here([*of_base(), hacked, *exact])
    assert sorted(part.first) == ["cocogen", "pirf-ray"]
    assert "draft-k" not in part.ranks and part.methods["draft-k"].below_floor


@pytest.mark.parametrize(("ratio", "first"), [(1.009, ["cocogen", "pirf-ray"]), (1.02, ["cocogen"])])
def test_what_differs_by_less_than_seeds_do_is_equal(ratio: float, first: list[str]) -> None:
    pair = [
        evaluated("Burgers-v0", method, 20, 0, value * 100 * FLOOR, 0.1)
        for method, value in (("cocogen", 1), ("pirf-ray", ratio))
    ]
    assert sorted(here([*of_base(), *pair]).first) == first


def test_a_residual_that_is_not_finite_has_no_rank() -> None:
    cells = [*benchmark_cells(), evaluated("Burgers-v0", "cocogen", 20, 0, math.inf, 0.1)]
    assert "cocogen" not in here(cells).ranks


def test_a_method_without_its_base_is_not_ranked() -> None:
    part = here([evaluated("Burgers-v0", "cocogen", 20, 0, 0.01, 0.1)])
    assert math.isnan(part.methods["cocogen"].energy_ratio.mean) and part.ranks == {}


def test_what_is_missing_is_named() -> None:
    cells = [c for c in benchmark_cells() if (c.env, c.method) != ("Poisson-v0", "draft-k")]
    failed = trained("Poisson-v0", "draft-k", failed="too steep")
    missing = aggregate([*cells, failed], header(ENVS, METHODS)).missing
    assert missing == ["Poisson-v0 draft-k at N = 10, 20 (too steep)"]


def test_benchmark_json_has_its_documented_names() -> None:
    """The names of version 0.1, which others may read."""
    made = json.loads(json.dumps(aggregate(benchmark_cells(), header(ENVS, METHODS)).to_json()))
    assert set(made) == {"header", "guard", "titles", "sources", "envs", "missing"}
    env = made["envs"]["Burgers-v0"]
    names = {"operators", "default_operator", "unrewarded_operator", "conditions", "channels"}
    assert set(env) == {*names, "steps", "training", "trials"}
    assert env["training"]["draft-k"] == {
        "settings": {"learning_rate": 1e-4},
        "budget": 2000,
        "cost": {"network_forwards": 1000, "network_gradients": 500, "residual_gradients": 0, "seconds": 60},
    }
    trial = {"settings": {}, "score": 0, "residual": 0.01, "energy_ratio": 1.2, "amplitude_ratio": 1, "below_floor": False}
    assert env["trials"] == {"base": [], "cocogen": [], "draft-k": [trial], "pirf-ray": []}
    step = env["steps"]["20"]
    assert set(step) == {"methods", "data", "data_spectra", "nfe", "samples", "real", "ranks", "first"}
    assert (step["nfe"], step["samples"], step["real"], step["first"]) == (39, 8, 64, ["pirf-ray"])
    assert step["data"]["residual/simpson/mean"] == pytest.approx(FLOOR)
    assert step["data"]["fidelity/nearest_training_distance"] == pytest.approx(0.7)
    entry = step["methods"]["cocogen"]
    assert set(entry) == {"figures", "cost", "seeds", "below_floor", "within_guard", "spectra"}
    assert entry["seeds"] == 2 and entry["within_guard"] is True and entry["below_floor"] is False
    figures = {"num_samples", "residual/paper/median", "condition/wall/mean", "resolve/trivial_median", "energy_ratio"}
    assert figures | {"fidelity/amplitude_ratio/u", "residual_ratio"} <= set(entry["figures"])
    assert not any(name.endswith(("interval", "below_floor")) for name in entry["figures"])
    assert all(set(figure) == {"mean", "values", "interval"} for figure in entry["figures"].values())


def test_markdown_holds_every_method_and_marks() -> None:
    text = markdown(aggregate(benchmark_cells(), header(ENVS, METHODS)))
    summary = text.split("**N = 20 (39 NFE)**")[1].split("**N = 10")[0]
    assert "| pirf_ray (default) | **0.05, 1.01** | **0.05, 1.01** |" in summary
    assert "| DRaFT-K | 0.02, 2 † | 0.02, 2 † |" in summary
    assert "| base | 1, 1 | 1, 1 |" in summary
    detail = text.split("**Burgers-v0, N = 20")[1].split("**Poisson")[0]
    for label in (
        "unrewarded check: simpson",
        "paper operator",
        "wall",
        "MMSE",
        "SMSE",
        "nearest training",
        "samples/s",
        "real data",
    ):
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
    hostile = [replace(c, method="<script>alert(1)</script>") for c in benchmark_cells() if c.method == "cocogen"]
    names = (*METHODS, "<script>alert(1)</script>")
    files = write_report(tmp_path, benchmark_cells() + hostile, header(ENVS, names), samples())
    text = files["page"].read_text()
    page = Wellformed()
    page.feed(text)
    assert page.open == []
    assert len(page.addresses) == 5 and all(a.startswith("data:image/png;base64,") for a in page.addresses)
    assert "<script" not in text and "&lt;script&gt;" in text
    assert json.loads(files["metrics"].read_text())["envs"]["Poisson-v0"]["steps"]["10"]["first"] == ["pirf-ray"]
    for name in ("frontier", "nfe", "spectra", "gallery-Burgers-v0", "gallery-Poisson-v0"):
        plot = matplotlib.image.imread(files[name])
        assert plot.shape[0] > 300 and plot[..., :3].std() > 0.02
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(p.name for p in files.values())


def test_an_unfinished_benchmark_has_a_report(tmp_path: Path) -> None:
    only_base = [c for c in of_base() if c.env == "Burgers-v0"]
    files = write_report(tmp_path, only_base, header(ENVS, METHODS), {})
    assert "Poisson-v0 pirf-ray at N = 10, 20" in files["tables"].read_text()
    assert files["frontier"].is_file()
    nothing = write_report(tmp_path, [], header(ENVS, METHODS), {})
    assert "Not finished" in nothing["page"].read_text()
