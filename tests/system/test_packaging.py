"""What is installed, what CI runs, and the cluster file."""

import copy
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from pirf_ray.__main__ import modules
from places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def readme_lines() -> list[str]:
    return re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(), flags=re.MULTILINE)


def test_exactly_the_three_packages_are_installed() -> None:
    assert PROJECT["tool"]["setuptools"]["packages"]["find"]["include"] == ["envs*", "pirf_ray*", "tune*"]
    for folder in (p.parent for p in ROOT.glob("*/**/*.py") if p.relative_to(ROOT).parts[0] in ("envs", "pirf_ray", "tune")):
        assert (folder / "__init__.py").is_file(), folder


def test_everything_in_the_zoo_is_package_data() -> None:
    zoo = ROOT / "pirf_ray" / "zoo"
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["pirf_ray.zoo"]
    shipped = {path for pattern in patterns for path in zoo.glob(pattern) if path.is_file()}
    files = {path for path in zoo.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files
    assert files <= shipped


def test_the_shipped_constants_are_package_data() -> None:
    assert PROJECT["tool"]["setuptools"]["package-data"]["envs.rewards"] == ["constants.json"]
    assert (ROOT / "envs" / "rewards" / "constants.json").is_file()


def test_readme_has_the_two_commands_and_ci_runs_the_second() -> None:
    first, second = readme_lines()
    install = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e"
    assert first == f"{install} . && .venv/bin/python -m pirf_ray.train --env Burgers-v0"
    assert second == f'{install} ".[dev]" && .venv/bin/python -m pytest'
    assert "README.md" in (ROOT / ".ci" / "run").read_text()


def test_the_package_says_what_it_is() -> None:
    import pirf_ray

    project = PROJECT["project"]
    assert project["version"] == pirf_ray.__version__
    assert project["license"] == "Apache-2.0" and "Apache License" in (ROOT / "LICENSE").read_text()
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text()
    assert f"## {project['version']}" in (ROOT / "CHANGELOG.md").read_text()
    assert all((ROOT / package / "py.typed").is_file() for package in ("envs", "pirf_ray", "tune"))
    assert all((ROOT / name).is_file() for name in ("CONTRIBUTING.md", "LICENSE"))
    assert {name for name in pirf_ray.__all__ if not hasattr(pirf_ray, name)} == set()


@pytest.mark.slow
def test_an_installed_package_works_outside_the_clone(tmp_path: Path) -> None:
    """A wheel unpacked into an empty place, no clone on the path: every command answers, the shipped models are there."""
    source = tmp_path / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".git", ".venv", "build", "runs", "*.egg-info", "__pycache__"))
    build = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
        str(source),
    ]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("pirf_ray-*.whl")
    place = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(place)
    assert not [name for name in names if name.startswith("tests") or "/tests/" in name]
    assert {
        "envs/py.typed",
        "pirf_ray/py.typed",
        "tune/py.typed",
        "pirf_ray/zoo/Burgers-v0/32/ema.safetensors",
        "envs/rewards/constants.json",
    } <= set(names)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(place)}
    for module in (*modules(), "pirf_ray.studies.hacking", "pirf_ray.studies.scaling", "pirf_ray.studies.throughput"):
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0 and "--" in done.stdout, (module, done.stderr)
    generate = [
        "-m",
        "pirf_ray.generate",
        "--checkpoint",
        "Burgers-v0",
        "--num-samples",
        "1",
        "--num-steps",
        "1",
        "--out",
        "s.h5",
    ]
    subprocess.run([sys.executable, *generate], cwd=elsewhere, env=environment, check=True, capture_output=True)
    where = [sys.executable, "-c", "import pirf_ray, envs, tune; print(pirf_ray.__file__, envs.__file__, tune.__file__)"]
    printed = subprocess.run(where, cwd=elsewhere, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed.count(str(place)) == 3


def test_constraints_pin_every_direct_dependency() -> None:
    pinned = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    assert pinned["torch"] == "2.13.0"
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]
    names = [re.match(r"[A-Za-z0-9_-]+", d).group().lower() for d in wanted]
    assert [name for name in names if name not in pinned] == []


def test_shipped_model_has_a_card_and_is_what_its_card_says() -> None:
    from pirf_ray import zoo
    from pirf_ray.diffusion.checkpoints import load_denoiser

    path = zoo.find("Burgers-v0", 32)
    info, denoiser = load_denoiser(path)
    card = (path / "CARD.md").read_text()
    assert f"{sum(p.numel() for p in denoiser.parameters()):,} weights" in card
    assert f"sigma_data: {info.sigma_data}" in card
    assert sum(f.stat().st_size for f in path.iterdir()) < 8 * 2**20


@pytest.fixture(params=["cluster.yaml", "cluster-machines.yaml"])
def cluster(request: pytest.FixtureRequest) -> dict:
    return yaml.safe_load((ROOT / request.param).read_text())


def test_cluster_files_are_valid(cluster: dict) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(copy.deepcopy(cluster)))
    legacy = {"head_node", "worker_nodes", "autoscaling_mode", "target_utilization_fraction", "initial_workers"}
    assert legacy.isdisjoint(cluster)


def test_every_node_runs_the_synced_tree_with_one_release_of_ray(cluster: dict) -> None:
    pinned, install = cluster["setup_commands"][-2:]
    assert pinned.endswith("> " + re.search(r"-c (\S+)", install).group(1)) and "'^ray=='" in pinned
    assert re.search(r"^ray==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    tree = re.search(r"-e (\S+)", install).group(1)
    assert cluster["file_mounts"][tree] == "."


def test_clusters_are_closed(cluster: dict) -> None:
    """Token authentication on every node, the token from a file that is not in the tree; the dashboard on loopback."""
    for commands in (cluster["head_start_ray_commands"], cluster["worker_start_ray_commands"]):
        (start,) = (c for c in commands if "ray start" in c)
        assert "RAY_AUTH_MODE=token" in start and "0.0.0.0" not in start
    assert any("--dashboard-host=127.0.0.1" in c for c in cluster["head_start_ray_commands"])
    assert [v for k, v in cluster["file_mounts"].items() if k.endswith(".ray/auth_token")] == ["~/.ray/auth_token"]
    assert not re.search(r"RAY_AUTH_TOKEN=|password|secret", json.dumps(cluster))


def test_the_cloud_has_gpu_workers_and_shared_storage() -> None:
    cluster = yaml.safe_load((ROOT / "cluster.yaml").read_text())
    assert cluster["provider"]["region"]  # Ray's validation does not ask for it
    worker = cluster["available_node_types"]["gpu_worker"]
    assert worker["resources"]["GPU"] == 1 and worker["min_workers"] == 0 and worker["max_workers"] > 0
    images = {node["node_config"]["ImageId"] for node in cluster["available_node_types"].values()}
    assert len(images) == 1, "one field to fill in"
    shared = "/mnt/pirf_ray"
    assert any(shared in c for c in cluster["head_setup_commands"]) and any(
        shared in c for c in cluster["worker_start_ray_commands"]
    )


@pytest.mark.parametrize("pattern", [r"/root/", r"/home/(?!ubuntu)", r"/tmp/", r"https?://(?!arxiv)"])
def test_no_machine_paths_or_hosts_in_the_tree(pattern: str) -> None:
    files = [p for s in ("*.py", "*.toml", "*.md", "*.txt", "*.yaml") for p in ROOT.glob(f"**/{s}")]
    skipped = {"build", "runs", "venv", "LICENSE"}
    own = [p for p in files if not any(part in skipped or part[0] == "." for part in p.relative_to(ROOT).parts)]
    own.remove(Path(__file__))
    assert [str(p) for p in own if re.search(pattern, p.read_text())] == []
