"""The order of the rooms: who may import whom, read from the source."""

import subprocess
import sys
from pathlib import Path

import pytest

import house
from places import ROOT

MODULES = house.graph(ROOT)


def test_rooms_import_only_what_is_below() -> None:
    assert house.upward(MODULES) == []


def test_every_module_is_in_a_room() -> None:
    roomless = [m for m in MODULES if house.room_of(m) == "pirf_ray" and m not in ("pirf_ray", "pirf_ray.__main__")]
    assert roomless == []
    assert not [m for m in MODULES if house.room_of(m) not in (*house.RANKS, "pirf_ray")]


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("envs/numerics/grids.py", "from envs.pdes import make_pde"),
        ("pirf_ray/diffusion/policy.py", "def late():\n    from pirf_ray.learning.learner import Learner"),
        ("pirf_ray/training/guard.py", "import pirf_ray.pretraining.trainer"),
        ("pirf_ray/evaluation/models.py", "from pirf_ray import api"),
    ],
)
def test_a_planted_upward_import_is_found(tmp_path: Path, file: str, line: str) -> None:
    """Also inside a function, of a sibling on the same floor, and of a module named by its package."""
    for source in house.files(ROOT):
        copy = tmp_path / source.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(source.read_text())
    (tmp_path / file).write_text(f"{line}\n" + (ROOT / file).read_text())
    (found,) = house.upward(house.graph(tmp_path))
    assert found.startswith(file.removesuffix(".py").replace("/", "."))


def test_nothing_imports_a_command_and_commands_are_short() -> None:
    assert house.imported_commands(MODULES) == []
    files = sorted((ROOT / "pirf_ray").glob("*.py"))
    assert {f.stem for f in files} <= {*house.COMMANDS, "__init__", "__main__", "api"}
    assert {f.name: n for f in files if f.stem in house.COMMANDS and (n := len(f.read_text().splitlines())) > 80} == {}


def test_ray_and_optuna_have_their_places() -> None:
    """Importing pirf_ray.distributed sets Ray's switches (token, loopback), which Ray reads when it is imported."""
    assert house.outside(MODULES, "ray", house.RAY) == []
    assert house.outside(MODULES, "optuna", house.OPTUNA) == []
    bare = [str(f.relative_to(ROOT)) for f in house.files(ROOT) if "from ray import tune\n" in f.read_text()]
    assert bare == [], "tune is our own package: from ray import tune as ray_tune"


def test_no_file_is_over_400_lines() -> None:
    assert {str(f.relative_to(ROOT)): n for f in house.files(ROOT) if (n := len(f.read_text().splitlines())) > 400} == {}
    tests = (ROOT / "tests").rglob("*.py")
    assert {str(f.relative_to(ROOT)): n for f in tests if (n := len(f.read_text().splitlines())) > 400} == {}


def test_every_public_function_and_class_has_a_docstring() -> None:
    assert house.undocumented(ROOT) == []


def test_no_library_function_asks_whether_there_is_a_gpu() -> None:
    """Devices are settings: the command line decides once (pirf_ray/cli/devices.py)."""
    asking = [str(f.relative_to(ROOT)) for f in house.files(ROOT) if "cuda.is_available" in f.read_text()]
    assert asking == ["pirf_ray/cli/devices.py"]


def test_importing_pirf_ray_is_light() -> None:
    """Only Gymnasium and numpy are loaded; the rest comes with the first use of a name."""
    heavy = "{'torch', 'ray', 'scipy', 'matplotlib', 'optuna', 'envs', 'tyro', 'h5py'}"
    code = f"import sys, pirf_ray; print(sorted({heavy} & set(sys.modules))); pirf_ray.load; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "True"]
