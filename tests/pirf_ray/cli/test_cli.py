"""The shared command line, and the commands that make data and base models, in this process."""

import errno
import os
import re
import shlex
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from rich.console import Console

from commands import ending, refuse
from envs.data import datasets
from envs.pdes import REGISTRY, make_pde
from pirf_ray import data, pretrain
from pirf_ray.cli import errors, flags, progress
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.ema import Ema
from pirf_ray.diffusion.networks import NetworkConfig
from pirf_ray.pretraining.presets import PRESETS
from pirf_ray.pretraining.trainer import PretrainSettings

UPDATES = ("--images", "96", "--warmup-images", "16")
SMOKE = ("--preset", "smoke", "--threads", "1", *UPDATES)


@pytest.fixture(autouse=True)
def short_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pirf_ray.evaluation.cards.CARD_STEPS", (2,))


def weights(out: Path) -> str:
    return checkpoints.fingerprint(checkpoints.load_weights(out / "model", "ema"))


def card_line(out: Path, name: str) -> str:
    return re.search(rf"^- {name}: (.*)$", (out / "model" / "CARD.md").read_text(), flags=re.MULTILINE).group(1)


@pytest.mark.parametrize(
    ("main", "argv", "flag"),
    [
        (data.main, ["--num-samples", "abc"], "--num-samples"),
        (pretrain.main, ["--out", "x", "--batch", "many"], "--batch"),
        (pretrain.main, ["--out", "x", "--channel-mult", "wide"], "--channel-mult"),
        (pretrain.main, ["--preset", "smoke"], "--out"),
    ],
)
def test_values_of_the_wrong_type_are_answered_with_their_flag(main, argv, flag, capsys: pytest.CaptureFixture[str]) -> None:
    code, error = ending(main, argv, capsys)
    assert code == 2
    assert flag in error


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--preset", "huge"], "unknown preset 'huge'; known: paper, small, smoke"),
        (["--env", "Stokes-v0"], "unknown env 'Stokes-v0'; known: Burgers-v0"),
        (["--batch", "-3"], "batch must be positive, got -3"),
        (["--threads", "0"], "--threads must be at least 1, got 0"),
        (["--training-samples", "0"], "--training-samples must be at least 1, got 0"),
        (["--device", "tpu"], "--device must be auto, cpu, cuda or cuda:1, got 'tpu'"),
        (["--data", "nowhere.h5"], "nowhere.h5: no such file"),
        (["--resume"], "no such directory"),
    ],
)
def test_bad_pretraining_flags_are_one_line_and_make_nothing(
    argv: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    preset = [] if "--preset" in argv else ["--preset", "smoke"]
    assert message in refuse(pretrain.main, [*preset, "--out", str(tmp_path / "out"), *argv], capsys)
    assert not (tmp_path / "out").exists()


def test_ctrl_c_is_exit_code_130_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(argv: list[str]) -> None:
        raise KeyboardInterrupt

    assert ending(interrupted, [], capsys) == (130, "interrupted")


@pytest.mark.parametrize(
    ("code", "said"), [(errno.ENOSPC, "No space left on device"), (errno.EROFS, "Read-only"), (errno.EACCES, "denied")]
)
def test_a_disk_that_is_full_or_closed_is_one_line(code: int, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    def full() -> None:
        raise OSError(code, os.strerror(code), "runs/x/metrics.jsonl")

    with pytest.raises(SystemExit) as ending:
        errors.run_command(full)
    error = capsys.readouterr().err.strip()
    assert ending.value.code == 1 and len(error.splitlines()) == 1
    assert said in error and "runs/x/metrics.jsonl" in error and "what was written before is kept" in error


def test_a_bug_keeps_its_traceback() -> None:
    def broken() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        errors.run_command(broken)


def test_presets_values_are_the_defaults_that_help_shows(capsys: pytest.CaptureFixture[str]) -> None:
    for preset, images in (("smoke", "640"), ("small", "224000")):
        with pytest.raises(SystemExit) as exit_info:
            pretrain.main(["--preset", preset, "--help"])
        assert exit_info.value.code == 0
        text = " ".join(capsys.readouterr().out.split())
        assert re.search(rf"--images.*?default: {images}\b", text)
        assert "--out" in text


def test_small_preset_is_what_the_shipped_model_was_trained_with() -> None:
    small = PRESETS["small"](REGISTRY["Burgers-v0"])
    network = NetworkConfig(num_blocks=1, periodic=(False, True))
    assert small.settings == PretrainSettings(network=network, images=224_000, noise_mean=-2.5, noise_std=1.5)
    assert small.settings.network.resolution == 32
    assert small.training_samples == 32_768


def test_paper_preset_has_the_papers_network_and_edms_noise() -> None:
    settings = PRESETS["paper"](REGISTRY["Burgers-v0"]).settings
    n = settings.network
    assert (n.resolution, n.model_channels, n.channel_mult, n.num_blocks, n.attn_resolutions) == (128, 128, (2, 2, 2), 4, (16,))
    assert (settings.noise_mean, settings.noise_std) == (-1.2, 1.2)


@dataclass(frozen=True)
class Checked:
    """A settings class whose check fails deep inside tyro."""

    value: int = 1
    """A value."""

    def __post_init__(self) -> None:
        if self.value < 0:
            raise ValueError(f"--value must not be negative, got {self.value}")


def test_parse_tells_a_refused_setting_from_a_misspelled_value(capsys: pytest.CaptureFixture[str]) -> None:
    assert flags.parse(Checked, argv=["--value", "3"], prog="p", description=None) == Checked(value=3)
    with pytest.raises(ValueError, match="--value must not be negative, got -1"):
        flags.parse(Checked, argv=["--value", "-1"], prog="p", description=None)
    with pytest.raises(SystemExit):
        flags.parse(Checked, argv=["--value", "x"], prog="p", description=None)
    assert "--value" in capsys.readouterr().err


def test_progress_without_a_terminal_is_plain_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(progress, "PLAIN_SECONDS", 0.0)
    with (tmp_path / "log").open("w") as log:
        parts = [range(4), range(4, 6)]
        assert list(progress.progress_bar("solving", Console(file=log))(parts)) == parts
    lines = [line for line in (tmp_path / "log").read_text().splitlines() if line.strip()]
    assert [re.sub(r"\|.*", "", line).strip() for line in lines] == ["solving 4/6", "solving 6/6"]
    assert all("samples/s" in line for line in lines)


def test_data_streams_are_disjoint_and_seeds_matter(tmp_path: Path) -> None:
    pde = make_pde("Burgers-v0", 8)
    fields = {}
    for name, words in {"train": [], "test": ["--stream", "test"], "other": ["--seed", "1"], "again": []}.items():
        file = tmp_path / f"{name}.h5"
        data.main(["--resolution", "8", "--num-samples", "3", "--out", str(file), *words])
        fields[name] = datasets.FieldFile(file, pde).read(range(3))
    assert fields["train"].equal(fields["again"])
    for other in ("test", "other"):
        assert not any(a.equal(b) for a in fields["train"] for b in fields[other])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A training that was never stopped."""
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pirf_ray.evaluation.cards.CARD_STEPS", (2,))
        pretrain.main([*SMOKE, "--out", str(out)])
    return out


def interrupt_inside_update(monkeypatch: pytest.MonkeyPatch, index: int) -> None:
    """Ctrl-C after the weights of update ``index`` moved and before their average did: the worst moment."""
    ema_update = Ema.update

    def update(self: Ema, tensors) -> None:
        if self.updates == index:
            monkeypatch.setattr(Ema, "update", ema_update)
            signal.raise_signal(signal.SIGINT)
        ema_update(self, tensors)

    monkeypatch.setattr(Ema, "update", update)


def stopped(out: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> list[str]:
    """Interrupt a training; the flags of the command that it says to continue with."""
    code, error = ending(pretrain.main, [*SMOKE, "--out", str(out), *flags], capsys)
    assert code == 130
    told = error.splitlines()[-1].partition("continue with: python -m pirf_ray.pretrain ")[2]
    assert told
    assert not (out / "model").exists()
    return shlex.split(told)


def test_a_training_stopped_within_an_update_resumes_to_the_same_bits(
    whole: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    interrupt_inside_update(monkeypatch, 5)
    pretrain.main(stopped(tmp_path / "out", capsys))
    assert weights(tmp_path / "out") == weights(whole)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_the_printed_command_goes_on_with_the_same_data_and_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file, out = tmp_path / "my fields.h5", tmp_path / "out"
    datasets.write(file, make_pde("Burgers-v0", 8), num_samples=20, seed=7, stream="mine")
    interrupt_inside_update(monkeypatch, 5)
    told = stopped(out, capsys, "--data", str(file), "--learning-rate=2e-3")
    without = [word for word in told if word not in ("--data", str(file))]
    assert "give the same one with --data" in refuse(pretrain.main, without, capsys)
    other = tmp_path / "other.h5"
    datasets.write(other, make_pde("Burgers-v0", 8), num_samples=20, seed=8, stream="mine")
    swapped = [str(other) if word == str(file) else word for word in told]
    assert "was trained on" in refuse(pretrain.main, swapped, capsys)
    pretrain.main(told)
    assert card_line(out, "Data").startswith("20 solver samples, stream `mine`, seed 7")


def test_the_card_names_the_command_that_made_the_model(tmp_path: Path, whole: Path) -> None:
    flags = f"--threads 1 {' '.join(UPDATES)}"
    assert card_line(whole, "Command") == f"`python -m pirf_ray.pretrain --env Burgers-v0 --preset smoke {flags} --out DIR`"


def test_a_diverging_training_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    argv = [*SMOKE, "--out", str(tmp_path / "out"), "--learning-rate", "1e9"]
    code, error = ending(pretrain.main, argv, capsys)
    assert code == 2
    assert error.splitlines()[-1].startswith("error: loss of update")
    assert error.endswith("lower the learning rate; there is no checkpoint yet")
