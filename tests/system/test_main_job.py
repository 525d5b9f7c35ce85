"""The commands as a user runs them: bad input, whole runs over Ray, Ctrl-C, killed processes, the Python API."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest

from commands import refuse
from envs.data import datasets
from envs.pdes import make_pde
from pirf_ray import api, zoo
from pirf_ray.__main__ import ORDER
from pirf_ray.diffusion import checkpoints
from pirf_ray.training.runs import RunDirectory
from places import ROOT
from tiny_models import tiny_denoiser, write_base


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", f"pirf_ray.{name}", *arguments]


def run(name: str, *arguments: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(name, *arguments), capture_output=True, text=True, timeout=timeout, cwd=ROOT)


def broken_base(path: Path, how: str) -> Path:
    base = write_base(path / "base")
    file = base / checkpoints.EMA
    if how == "truncated":
        file.write_bytes(file.read_bytes()[:-64])
    elif how == "corrupted":
        data = bytearray(file.read_bytes())
        data[-5] ^= 0xFF
        file.write_bytes(bytes(data))
    elif how == "other PDE":
        meta = json.loads((base / checkpoints.META).read_text())
        meta["info"]["env_id"] = "Stokes-v0"
        (base / checkpoints.META).write_text(json.dumps(meta))
    return base


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env", "Stokes-v0"], r"--env: unknown env 'Stokes-v0'; known: Burgers-v0"),
        (["--preset", "huge"], r"--preset: unknown preset 'huge'; known: paper, small, smoke"),
        (["--truncation", "21"], r"--truncation must be in \[1, 5\].*got 21"),
        (["--truncation", "-1"], r"--truncation must be at least 0, got -1"),
        (["--reward", "nothing"], r"--reward: unknown reward 'nothing'; known: .*physics"),
        (["--objective", "nothing"], r"--objective: unknown objective 'nothing'; known: .*pathwise"),
        (["--parameters", "nothing"], r"--parameters: unknown parameters 'nothing'; known: layers, low-rank"),
        (["--regularizers", "l2", "nothing"], r"--regularizers: unknown regularizer 'nothing'; known: anchor, l2"),
        (["--parameters", "low-rank", "--lora-rank", "0"], r"--lora-rank must be at least 1, got 0"),
        (["--objective", "policy-gradient", "--solver", "heun"], r"needs log densities of steps: --solver stochastic, got heun"),
        (["--objective", "policy-gradient", "--group", "1"], r"--group must be at least 2 for --credit group, got 1"),
        (["--objective", "draft-lv"], r"--objective draft-lv differentiates the last step only: --truncation must be 1, got 2"),
        (["--maker", "samples"], r"--maker samples: --objective pathwise uses rollouts of prefixes"),
        (["--reward", "command:/nowhere/program"], r"--reward command: no program '/nowhere/program' on the PATH"),
        (["--l2", "-1"], r"--l2 must not be negative, got -1.0"),
        (["--anchor", "-1"], r"--anchor must not be negative"),
        (["--operator", "upwind"], r"--operator 'upwind' is not one of Burgers-v0; known: \['consistent', 'paper', 'simpson'\]"),
        (["--levels", "9"], r"--levels must be in \[0, 3\]"),
        (["--actors", "400"], r"--actors, .*: the run needs 100.25 CPUs and 0 GPUs in 401 pieces, the cluster has"),
        (["--worker-gpus", "64"], r"needs .* 64 GPUs"),
        (["--resolution", "64"], r"no base model for Burgers-v0 at 64x64 ships .*Burgers-v0 at 32x32"),
        (["--base", "nowhere"], r"nowhere: no such checkpoint directory"),
        (["--data", "nowhere.h5"], r"nowhere.h5: no such file"),
        (["--resume", "nowhere"], r"nowhere.*config.json: no such file"),
    ],
)
def test_bad_flags_are_one_line_and_start_nothing(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from pirf_ray.train import main

    out = [] if "--resume" in arguments else ["--out", str(tmp_path / "run")]
    assert re.search(message, refuse(main, ["--preset", "smoke", *out, *arguments], capsys))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("truncated", r"ema.safetensors: damaged or not a safetensors file"),
        ("corrupted", r"ema.safetensors: does not match the hash"),
        ("other PDE", r"meta.json: unknown env 'Stokes-v0'; known"),
        ("other resolution", r"a model at resolution 8, expected --resolution 32"),
    ],
)
def test_bad_base_models_are_named(how: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from pirf_ray.train import main

    base = broken_base(tmp_path, how)
    resolution = [] if how == "other resolution" else ["--resolution", "8"]
    error = refuse(main, ["--preset", "smoke", "--base", str(base), *resolution, "--out", str(tmp_path / "run")], capsys)
    assert re.search(message, error)


def test_bad_data_files_list_what_is_wrong(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from pirf_ray.train import main

    file = tmp_path / "data.h5"
    datasets.write(file, make_pde("Burgers-v0", 8), num_samples=4, seed=0, stream="test")
    arguments = ["--preset", "smoke", "--out", str(tmp_path / "run"), "--data", str(file)]
    assert "expected (samples, 1, 32, 32)" in refuse(main, arguments, capsys)
    good = tmp_path / "nan.h5"
    datasets.write(good, make_pde("Burgers-v0", 32), num_samples=4, seed=0, stream="test")
    with h5py.File(good, "a") as opened:
        opened["fields"][2, 0, 3, 3] = np.nan
    assert "1 of 4 samples are not finite, first sample 2" in refuse(main, [*arguments[:-1], str(good)], capsys)


def test_misspelled_flags_are_answered_with_the_right_one(capsys: pytest.CaptureFixture[str]) -> None:
    from pirf_ray.train import main

    with pytest.raises(SystemExit) as exit_info:
        main(["--truncatio", "2"])
    assert exit_info.value.code == 2
    assert "--truncation" in capsys.readouterr().err


def test_an_output_directory_that_holds_something_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from pirf_ray.train import main

    (tmp_path / "notes.txt").write_text("mine")
    assert "output directory holds another run" in refuse(main, ["--preset", "smoke", "--out", str(tmp_path)], capsys)
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("name", [*ORDER, "studies.hacking", "studies.scaling", "studies.throughput"])
def test_help_explains_every_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    from importlib import import_module

    with pytest.raises(SystemExit) as exit_info:
        import_module(f"pirf_ray.{name}").main(["--help"])
    assert exit_info.value.code == 0
    text = capsys.readouterr().out
    assert "--" in text
    assert "TODO" not in text


def test_data_command_writes_and_validates(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from pirf_ray.data import main

    file = tmp_path / "d.h5"
    main(["--resolution", "8", "--num-samples", "3", "--out", str(file)])
    main(["--validate", str(file)])
    text = capsys.readouterr().out
    assert "residual floor, consistent" in text
    assert "valid; 3 samples of Burgers-v0 at 8x8" in text
    assert "exists" in refuse(main, ["--out", str(file)], capsys)
    assert "no such file" in refuse(main, ["--validate", str(tmp_path / "no.h5")], capsys)
    assert "give one of --out" in refuse(main, [], capsys)


def test_pretraining_makes_a_model_that_generates(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from pirf_ray import generate, pretrain

    out = tmp_path / "base"
    pretrain.main(["--preset", "smoke", "--out", str(out), "--threads", "1"])
    assert "over floor" in (out / "model" / "CARD.md").read_text()
    generate.main(["--checkpoint", str(out / "model"), "--num-samples", "3", "--out", str(tmp_path / "s.h5"), "--num-steps", "3"])
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["base/fields"].shape == (3, 1, 8, 8)
        assert np.isfinite(file["base/fields"][:]).all()
    assert "holds another run" in refuse(pretrain.main, ["--preset", "smoke", "--out", str(out)], capsys)
    changed = ["--preset", "smoke", "--out", str(out), "--resume", "--learning-rate", "1"]
    assert "was trained with other settings: learning_rate" in refuse(pretrain.main, changed, capsys)


def test_settings_of_the_api_are_named_like_the_flags() -> None:
    assert api.configure("Burgers-v0", batch=4, chunk=4).rollout.chunk == 4  # each alone would not fit the other
    config = api.configure("Burgers-v0", truncation=3, l2=0.5, seed=4)
    assert (config.policy.truncation, config.regularizers_settings.l2, config.seed) == (3, 0.5, 4)
    with pytest.raises(ValueError, match="unknown settings: lambda_"):
        api.configure("Burgers-v0", lambda_=1.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "run"
    result = run("train", "--env", "Burgers-v0", "--preset", "smoke", "--out", str(out))
    assert result.returncode == 0, result.stderr
    assert "residual consistent (rewarded)" in result.stdout
    assert "real data" in result.stdout
    return out


@pytest.mark.slow
def test_a_run_leaves_everything_it_promises(finished: Path) -> None:
    names = {p.name for p in finished.iterdir()}
    assert {"config.json", "metrics.jsonl", "checkpoints", "base", "samples.h5", "result.json", "report.png"} <= names
    assert (finished / "report.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    result = json.loads((finished / "result.json").read_text())
    assert {"base", "tuned", "data"} <= result.keys()
    assert [r.update for r in RunDirectory.open(finished).history()] == [1, 2, 3, 4]
    assert any((finished / "tensorboard").iterdir())


@pytest.mark.slow
def test_generate_and_evaluate_take_a_run(finished: Path, tmp_path: Path) -> None:
    made = run("generate", "--checkpoint", str(finished), "--num-samples", "4", "--out", str(tmp_path / "s.h5"))
    assert made.returncode == 0, made.stderr
    metrics = tmp_path / "metrics.json"
    arguments = ["--checkpoint", str(finished), "--samples", "8", "--real", "16", "--out", str(metrics)]
    done = run("evaluate", *arguments)
    assert done.returncode == 0, done.stderr
    assert json.loads(metrics.read_text())["num_samples"] == 8
    line = run("summary", str(finished), str(metrics)).stdout.strip().splitlines()[-1]
    assert line.startswith("| Burgers 32² | 9 |")


def test_zoo_names_what_ships() -> None:
    with pytest.raises(checkpoints.CheckpointError, match="no base model for Burgers-v0 at 16x16 ships .*Burgers-v0 at 32x32"):
        zoo.find("Burgers-v0", 16)
    assert tiny_denoiser().config.resolution == 8


def test_every_command_takes_a_shipped_models_name(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from pirf_ray import evaluate, generate

    generate.main(["--checkpoint", "Poisson-v0", "--num-samples", "2", "--num-steps", "2", "--out", str(tmp_path / "s.h5")])
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["base/fields"].shape == (2, 2, 32, 32)
    evaluate.main(["--checkpoint", "Poisson-v0", "--samples", "4", "--real", "16", "--num-steps", "2"])
    assert "Poisson-v0 at 32" in capsys.readouterr().out
    unknown = ["--checkpoint", "Stokes-v0", "--out", str(tmp_path / "t.h5")]
    assert "no such checkpoint or run directory, and no shipped model (there is: Burgers-v0" in refuse(
        generate.main, unknown, capsys
    )


def test_the_package_lists_and_runs_its_commands(tmp_path: Path) -> None:
    listed = subprocess.run([sys.executable, "-m", "pirf_ray"], capture_output=True, text=True, cwd=ROOT, check=True).stdout
    lines = listed.strip().splitlines()
    assert [line.split()[2] for line in lines] == [*(f"pirf_ray.{name}" for name in ORDER), "tune.sweep", "tune.report"]
    assert all(len(line.split("  ")[-1].split()) >= 3 for line in lines), "each says what it does"
    done = subprocess.run([sys.executable, "-m", "pirf_ray", "dance"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and done.stderr.startswith("error: unknown command 'dance'; known: data, pretrain")
    helped = subprocess.run([sys.executable, "-m", "pirf_ray", "import-edm", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert helped.returncode == 0 and "--max-gigabytes" in helped.stdout


def test_a_package_that_hides_ours_is_named_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "envs").mkdir()
    (tmp_path / "envs" / "__init__.py").write_text("")
    (tmp_path / "tune.py").write_text("")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in (["-m", "pirf_ray.data", "--help"], ["-m", "pirf_ray"]):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1
        assert f"the package 'envs' of pirf_ray is hidden by {tmp_path / 'envs'}" in done.stderr
    done = subprocess.run(
        [sys.executable, "-c", "import pirf_ray"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1 and "ImportError" in done.stderr and str(tmp_path / "envs") in done.stderr
    (tmp_path / "envs" / "__init__.py").unlink()
    (tmp_path / "envs").rmdir()
    done = subprocess.run(
        [sys.executable, "-m", "pirf_ray", "sweep"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2 and f"hidden by {tmp_path / 'tune.py'}" in done.stderr


def test_gymnasium_makes_the_environments_by_the_packages_name() -> None:
    """In both orders of import; what ``import pirf_ray`` registers is what the PDEs register."""
    make = "env = gymnasium.make('pirf_ray:Burgers-v0', resolution=8, num_steps=2); env.reset(seed=0)"
    for imports in ("import pirf_ray, gymnasium", "import gymnasium"):
        subprocess.run([sys.executable, "-c", f"{imports}; {make}"], check=True, cwd=ROOT)
    code = "import pirf_ray, gymnasium; a = dict(gymnasium.registry); import envs; print(dict(gymnasium.registry) == a)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT).stdout.strip() == "True"
