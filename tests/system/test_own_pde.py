"""The README's walk-through of a PDE and a reward of one's own, as a user does it: files outside the package, commands."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from places import ROOT

README = (ROOT / "README.md").read_text()
ENV = "advection_diffusion:AdvectionDiffusion-v0"


def code(section: str) -> str:
    """The first Python block of a README section."""
    return re.search(rf"## {section}\n.*?```python\n(.*?)```", README, re.DOTALL).group(1)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("user")
    (folder / "advection_diffusion.py").write_text(code("Your own PDE"))
    return folder


def run(place: Path, *words: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    done = subprocess.run([sys.executable, *words], cwd=place, env=environment, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr
    return done


def test_physics_of_the_example(place: Path) -> None:
    """Exact data vanish on the flow map; the witness is of second order; Gymnasium takes the module's own id."""
    script = """
import gymnasium, torch, numpy as np
env = gymnasium.make("advection_diffusion:AdvectionDiffusion-v0", resolution=16, speed=0.3)
from envs.pdes import make_pde
assert env.unwrapped._episode.pde.parameters == {"speed": 0.3, "diffusivity": 0.005}
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
    trained = run(place, "-m", "pirf_ray.train", "--env", ENV, *smoke)
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


def test_the_readmes_reward_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same code, fewer updates and samples. Its own term stands in the metrics, with the measured floor."""
    from pirf_ray import api

    records: list[dict[str, float]] = []
    fine_tune = api.fine_tune
    small = {"updates": 1, "batch": 8, "micro_batch": 8, "pool": 8, "pool_start": 8, "guard_samples": 4, "num_steps": 4}

    def quick(model: api.Model, **settings: object) -> api.Model:
        return fine_tune(model, on_record=records.append, **{**settings, **small})

    monkeypatch.setattr(api, "fine_tune", quick)
    space: dict[str, object] = {}
    exec(code("Your own reward"), space)
    assert space["tuned"].info.env_id == "Burgers-v0"
    term = space["reward"].terms[-1]
    assert (term.name, term.weight) == ("energy", 0.2)
    assert 0 <= term.floor < term.reference
    assert records[0]["condition/energy/mean"] >= 0
