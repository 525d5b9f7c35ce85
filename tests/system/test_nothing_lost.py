"""What the machine can do to a run: a full disk, one that cannot be written, a clock that jumps, a second process, files of others."""

import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import cycle
from pathlib import Path

import pytest
import torch

from envs.common.checks import ConfigError
from envs.pdes import make_pde
from pirf_ray import benchmark, train
from pirf_ray.cli import errors
from pirf_ray.distributed import driver  # noqa: F401  # not in the test that may not read Ray
from pirf_ray.evaluation.samples import write_samples
from pirf_ray.methods import METHODS, Recipe
from pirf_ray.training.checks import check, check_named
from pirf_ray.training.finetuning import train_here
from pirf_ray.training.records import UpdateRecord
from pirf_ray.training.runs import RunDirectory
from tiny_models import EXACT, start_run, tiny_config
from tune import directory, sweep
from tune.settings import Arguments

NOBODY = 65534
CONFIG = tiny_config(**EXACT)


def start(path: Path) -> RunDirectory:
    return start_run(path, CONFIG)


def ending(call: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """Exit code and standard error of a command."""
    with pytest.raises(SystemExit) as info:
        errors.run_command(call)
    return info.value.code, capsys.readouterr().err.strip()


def weights(run: RunDirectory) -> dict[str, torch.Tensor]:
    found = run.latest()
    assert found is not None
    return found[0].model


def assert_whole(run: RunDirectory, undisturbed: RunDirectory) -> None:
    """All updates once, each with the metrics and in the end the weights of the undisturbed run, and nothing half-written."""
    kept = [{k: v for k, v in r.items() if "timing" not in k and "per_second" not in k} for r in run.journal.records()]
    expected = [
        {k: v for k, v in r.items() if "timing" not in k and "per_second" not in k} for r in undisturbed.journal.records()
    ]
    assert kept == expected and [r["update"] for r in kept] == [1, 2, 3, 4, 5, 6]
    ours, theirs = weights(run), weights(undisturbed)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    names = [path.name for path in run.paths.root.rglob("*")]
    assert not [name for name in names if name.endswith(".partial") or name.startswith((".update", ".best"))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> RunDirectory:
    run = start(tmp_path_factory.mktemp("undisturbed"))
    train_here(run)
    return run


@contextmanager
def limited_files() -> Iterator[Callable[[int], None]]:
    """Gives what makes the kernel refuse to let any file of this process grow beyond so many bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@pytest.mark.parametrize(("hit", "after"), [("checkpoints/best", 3), ("metrics.jsonl", 4)])
def test_a_full_disk_names_the_file_and_the_run_goes_on_where_it_was(
    hit: str, after: int, tmp_path: Path, undisturbed: RunDirectory, capsys: pytest.CaptureFixture[str]
) -> None:
    """Full where update 4 would be kept, or in the middle of the record of update 5."""
    run = start(tmp_path)

    with limited_files() as limit:

        def fill(record: UpdateRecord) -> None:
            if record.update == after:
                limit(run.paths.metrics.stat().st_size + (100 if hit == "metrics.jsonl" else 4000))

        code, error = ending(lambda: train_here(run, on_record=fill), capsys)
    assert code == 1 and len(error.splitlines()) == 1
    assert str(run.paths.root / hit) in error and "what was written before is kept" in error
    assert len(run.history()) == after
    assert (
        sorted(path.name for path in run.paths.checkpoints.iterdir()) == ["best", "update_000002", "update_000004"][: after - 1]
    )
    train_here(run)
    assert_whole(run, undisturbed)


def test_samples_on_a_full_disk_are_one_line_and_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """HDF5, writing by itself, ends there in a segmentation fault."""
    pde, path = make_pde("Burgers-v0", resolution=8), tmp_path / "samples.h5"
    with limited_files() as limit:
        limit(20_000)
        code, error = ending(lambda: write_samples(path, pde, {"tuned": torch.randn(600, 1, 8, 8)}, {"seed": 0}), capsys)
    assert code == 1 and len(error.splitlines()) == 1 and str(path) in error
    assert list(tmp_path.iterdir()) == []


@contextmanager
def unprivileged() -> Iterator[None]:
    """As a user to whom a directory's permissions apply: not as root."""
    privileged = os.geteuid() == 0
    if privileged:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        if privileged:
            os.seteuid(0)


def test_a_run_directory_that_cannot_be_written_is_said_before_anything_starts(capsys: pytest.CaptureFixture[str]) -> None:
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        run = start(place)
        for path in (place, *place.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        flags = ["--env", "Burgers-v0", "--resolution", "8", "--levels", "0"]
        check(CONFIG, base=place / "base", data=None)  # imports what is imported late, while everything is readable
        with unprivileged():
            made = ending(lambda: train.main([*flags, "--base", f"{place}/base", "--out", f"{place}/new"]), capsys)
            resumed = ending(lambda: train.main([*flags[:2], "--resume", str(run.paths.root)]), capsys)
        for path in (place, *place.rglob("*")):
            path.chmod(0o755)
    assert (made[0], resumed[0]) == (1, 1)
    assert "Permission denied" in made[1] and f"{place}/new" in made[1]
    assert "Permission denied" in resumed[1] and str(run.paths.root) in resumed[1]


@pytest.mark.parametrize("main", [sweep.main, benchmark.main], ids=["sweep", "benchmark"])
def test_sweep_and_benchmark_say_so_too(main: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]) -> None:
    """/sys takes no directory from anybody, root included."""
    code, error = ending(lambda: main(["--env", "Burgers-v0", "--out", "/sys/pirf_ray"]), capsys)
    assert code == 1 and len(error.splitlines()) == 1 and "/sys/pirf_ray" in error


@pytest.mark.parametrize("module", ["pirf_ray.train", "tune.sweep"])
def test_an_address_where_no_cluster_answers_is_one_line_and_makes_nothing(module: str, tmp_path: Path) -> None:
    """Ray itself waits for minutes there. Nobody listens on the port: it was the system's to give a moment ago."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = ["--env", "Burgers-v0", "--address", address, "--out", str(tmp_path / "run")]
    done = subprocess.run([sys.executable, "-m", module, *flags], capture_output=True, text=True, timeout=120, check=False)
    error = done.stderr.strip()
    assert done.returncode == 2 and len(error.splitlines()) == 1
    assert error.startswith(f"error: --address {address}: no Ray cluster answers there")
    assert not (tmp_path / "run").exists()


def test_two_processes_never_train_one_run(undisturbed: RunDirectory, capsys: pytest.CaptureFixture[str]) -> None:
    """The lock is the kernel's, and ends with the process that has it: kill -9 leaves none behind."""
    root = undisturbed.paths.root
    hold = "import sys, time; from pathlib import Path; from envs.common.files import locked"
    hold += "\nwith locked(Path(sys.argv[1]), 'x'): print('locked', flush=True); time.sleep(600)"
    other = subprocess.Popen([sys.executable, "-c", hold, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        code, error = ending(lambda: train.main(["--env", "Burgers-v0", "--resume", str(root)]), capsys)
    finally:
        other.kill()
        other.wait()
    assert code == 2 and error == f"error: {root}: another process is running this run"
    with undisturbed.locked():
        pass


def test_a_clock_that_jumps_changes_nothing(tmp_path: Path, undisturbed: RunDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A day on, a day back, at every look; killed by no time-out and named by no other file."""
    run, jump, now = start(tmp_path), cycle([86_400.0, -86_400.0, 0.0]), time.time
    monkeypatch.setattr(time, "time", lambda: now() + next(jump))
    train_here(run)
    assert_whole(run, undisturbed)
    assert all(record.timing.learn >= 0 and record.timing.wait >= 0 for record in run.history())


def test_a_settings_file_of_others_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run's and a sweep's settings name an objective's module: whoever did not name it too is told of it, nothing is run."""
    (tmp_path / "trap.py").write_text("raise SystemExit('the code was run')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PIRF_RAY_PDES", "")
    run = start(tmp_path)
    settings = json.loads(run.paths.config.read_text())
    settings["objective"] = "trap:x"
    run.paths.config.write_text(json.dumps(settings))
    for words in (["--resume", str(run.paths.root)], ["--settings", str(run.paths.config)]):
        code, error = ending(lambda words=words: train.main(words), capsys)
        assert code == 2 and "names code of the module 'trap'" in error and "PIRF_RAY_PDES=trap" in error
    swept = directory.created(Arguments(env="Burgers-v0", out=tmp_path / "sweep"))
    for change in ({"config": settings}, {"vary": {"objective": "pathwise,trap:x"}}):
        stored = json.loads((swept.root / directory.SETTINGS).read_text())
        stored["arguments"]["space"] |= {k: v for k, v in change.items() if k == "vary"}
        stored |= {k: v for k, v in change.items() if k == "config"}
        (tmp_path / "other").mkdir(exist_ok=True)
        (tmp_path / "other" / directory.SETTINGS).write_text(json.dumps(stored))
        code, error = ending(lambda: sweep.main(["--resume", str(tmp_path / "other")]), capsys)
        assert code == 2 and "names code of the module 'trap'" in error
    monkeypatch.setenv("PIRF_RAY_PDES", "trap")
    check_named(["trap:x"], run.paths.config)
    with pytest.raises(ConfigError):
        check_named(["other:x"], run.paths.config, given="trap:x")


@pytest.mark.parametrize("name", ["../evil", "..", "/etc/evil", "a/b", "", ".hidden"])
def test_a_method_whose_name_would_leave_the_benchmark_is_refused(name: str) -> None:
    """Files are named by a method's name."""
    with pytest.raises(ValueError, match="files are named by it"):
        Recipe(name=name, title="evil", paper="")
    assert name not in METHODS
