"""The documents' code and commands, as a user runs them: files outside the package; and what is printed from the code."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pirf_ray
from places import ROOT

DOCS = ROOT / "docs"
ENV = "advection_diffusion:AdvectionDiffusion-v0"
QUICK: dict[str, Any] = {
    "updates": 1,
    "batch": 8,
    "micro_batch": 8,
    "pool": 8,
    "pool_start": 8,
    "pool_growth": 0.0,
    "guard_samples": 4,
    "num_steps": 4,
    "truncation": 2,
}


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
WITH_CODE = [page for page in PAGES if blocks(page, "python")]
IN_A_FILE = {"own_pde.md": "advection_diffusion", "own_objective.md": "weighted", "own_method.md": "shrunk_method"}
"""Pages whose first block is a file of the user's."""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's directory with the files of the tutorials."""
    folder = tmp_path_factory.mktemp("user")
    for page, module in IN_A_FILE.items():
        (folder / f"{module}.py").write_text(blocks(DOCS / "tutorials" / page, "python")[0])
    return folder


def run(place: Path, *words: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, *words], cwd=place, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("page", WITH_CODE, ids=lambda page: page.stem)
def test_python_blocks_run_in_order(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The very text, in one namespace; only the amounts are smaller."""
    monkeypatch.chdir(place)
    monkeypatch.syspath_prepend(str(place))
    fine_tune, evaluate = pirf_ray.fine_tune, pirf_ray.Model.evaluate

    def quick(model: pirf_ray.Model, **settings: Any) -> pirf_ray.Model:
        return fine_tune(model, **{**settings, **QUICK})

    monkeypatch.setattr("pirf_ray.api.fine_tune", quick)
    monkeypatch.setattr(pirf_ray.Model, "evaluate", lambda self, **_: evaluate(self, samples=4, real=8))
    names: dict[str, Any] = {}
    code = blocks(page, "python")
    if page.name in IN_A_FILE:
        names |= vars(__import__(IN_A_FILE[page.name]))
        code = code[1:]
    for block in code:
        exec(compile(block, str(page.name), "exec"), names)
    assert names


def test_the_readmes_reward_stands_in_the_records(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own term has a measured floor and is among the terms of a record."""
    records: list[Any] = []
    names: dict[str, Any] = {}
    code = blocks(DOCS / "tutorials" / "own_reward.md", "python")[0].rpartition("tuned = ")[0]
    exec(compile(code, "own_reward.md", "exec"), names)
    pirf_ray.fine_tune(names["model"], reward=names["reward"], on_record=records.append, **QUICK)
    term = names["reward"].terms[-1]
    assert (term.name, term.weight) == ("energy", 0.2)
    assert 0 <= term.floor < term.reference
    assert records[0].metrics.terms["energy"].mean >= 0 and not records[0].metrics.terms["energy"].is_residual


def test_links_lead_to_what_is_there() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
        for link in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
        if not link.startswith("http") and not (page.parent / link).exists()
    ]
    assert broken == []


def test_every_page_is_reached_from_the_readme() -> None:
    seen, waiting = set(), [ROOT / "README.md"]
    while waiting:
        page = waiting.pop()
        if page in seen or page.suffix != ".md":
            continue
        seen.add(page)
        links = re.findall(r"\]\(([^)#]+\.md)(?:#[^)]*)?\)", page.read_text())
        waiting += [(page.parent / link).resolve() for link in links]
    assert [str(page.relative_to(ROOT)) for page in PAGES if page not in seen] == []


def test_printed_pages_are_current() -> None:
    done = run(ROOT, "docs/print_reference.py", "--check", check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_is_short_and_documents_are_small() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
    large = {str(f.relative_to(ROOT)): f.stat().st_size for f in DOCS.rglob("*") if f.is_file() and f.stat().st_size > 500_000}
    assert large == {}


def test_physics_of_the_example(place: Path) -> None:
    """Exact data vanish on the flow map; the unrewarded operator is of second order; Gymnasium takes the module's own id."""
    script = """
import gymnasium, torch, numpy as np
env = gymnasium.make("advection_diffusion:AdvectionDiffusion-v0", resolution=16, speed=0.3)
from envs.pdes import make_pde
assert env.unwrapped.parameters == {"speed": 0.3, "diffusivity": 0.005}
found = []
for n in (64, 128):
    pde = make_pde("AdvectionDiffusion-v0", n)
    data = pde.solve(0, "test", range(8))
    assert pde.residual(data, "consistent").max() < 1e-20
    assert pde.conditions["mass"](data).max() < 1e-30
    assert pde.resolve_error(data).max() < 1e-12 < 0.1 < pde.trivial_resolve_error(data).min()
    found.append(pde.residual(data, "trapezoidal").mean().sqrt())
assert 3.5 < found[0] / found[1] < 5.0, found
"""
    run(place, "-c", script)


@pytest.mark.slow
def test_data_pretraining_training_and_evaluation_by_the_commands(place: Path) -> None:
    run(place, "-m", "pirf_ray.data", "--env", ENV, "--out", "check.h5", "--num-samples", "8", "--resolution", "16")
    run(place, "-m", "pirf_ray.pretrain", "--env", ENV, "--preset", "smoke", "--out", "advection", "--threads", "1")
    smoke = ["--preset", "smoke", "--resolution", "8", "--base", "advection/model", "--out", "run"]
    trained = run(place, "-m", "pirf_ray.train", "--env", ENV, *smoke, "--objective", "weighted:weighted")
    assert "AdvectionDiffusion-v0" in trained.stdout
    assert (place / "run" / "result.json").exists() and (place / "run" / "report.png").exists()
    evaluate = ["-m", "pirf_ray.evaluate", "--checkpoint", "run", "--samples", "8", "--real", "16"]
    unknown = run(place, *evaluate, check=False)
    assert unknown.returncode == 2
    assert "unknown env 'AdvectionDiffusion-v0'" in unknown.stderr and "PIRF_RAY_PDES" in unknown.stderr
    known = run(place, *evaluate, PIRF_RAY_PDES="advection_diffusion")
    assert "trapezoidal" in known.stdout


def test_a_module_that_is_not_there_is_named(place: Path) -> None:
    done = run(place, "-m", "pirf_ray.data", "--env", "nowhere:Heat-v0", "--out", "x.h5", check=False)
    assert (done.returncode, done.stderr) == (
        2,
        "error: --env nowhere:...: no module 'nowhere' in this directory or on the Python path\n",
    )


def test_an_installed_package_registers_its_pde_by_an_entry_point(place: Path) -> None:
    info = place / "example-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pirf_ray.pdes]\nadvection = advection_diffusion\n")
    run(place, "-c", "from envs.pdes import make_pde; make_pde('AdvectionDiffusion-v0', 8)", PYTHONPATH=str(place))
