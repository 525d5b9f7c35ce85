"""Running commands in this process, and flags that make whole commands short."""

from collections.abc import Callable
from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState

from pirf_ray.cli.errors import run_command

Main = Callable[[list[str]], None]


def ending(main: Main, argv: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Return exit code and stderr of a command that ends with an error."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_info:
        run_command(lambda: main(argv))
    return exit_info.value.code, capsys.readouterr().err.strip()


def refuse(main: Main, argv: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """Return the one line of stderr with which a command refuses its flags; its exit code must be 2."""
    code, error = ending(main, argv, capsys)
    assert code == 2
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    return error


# --- benchmark ---

SIZES = {
    "resolution": 8,
    "samples": 4,
    "real": 8,
    "training": 8,
    "validation": 4,
    "trials": 2,
    "trial-budget": 2000,
    "budget": 2000,
}
TINY = [part for name, size in SIZES.items() for part in (f"--{name}", str(size))]


# --- sweeps ---

TRIALS = 4
FLAGS = ["--preset", "smoke", "--num-trials", str(TRIALS), "--samples", "8", "--real", "16", "--test", "8", "--trial-cpus", "0.5"]
WIDE = {"guard-amplitude": "100", "guard-energy": "100", "guard-spectrum": "100"}
SPACE = ["--num-steps", "5", "--vary", "updates", "6", "guard-every", "2", *(part for pair in WIDE.items() for part in pair)]


def states(out: Path) -> dict[int, TrialState]:
    if not (out / "study.db").is_file():
        return {}
    try:
        (summary,) = optuna.get_all_study_summaries(f"sqlite:///{out / 'study.db'}")
        study = optuna.load_study(study_name=summary.study_name, storage=f"sqlite:///{out / 'study.db'}")
    except (ValueError, KeyError):  # its tables are being made
        return {}
    return {trial.number: trial.state for trial in study.get_trials(deepcopy=False)}
