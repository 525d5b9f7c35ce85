"""``python -m pirf_ray.pretrain``: train a base model by denoising score matching."""

import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch
import tyro
from rich.console import Console

from envs import datasets
from envs.datasets import FieldFile
from envs.pdes import PDE, make_pde
from pirf_ray import checkpoints
from pirf_ray.cards import write_card
from pirf_ray.cli import choose, flag_value, named_env, parse, progress_bar, run_command
from pirf_ray.config import ConfigError, SamplerSettings
from pirf_ray.evaluation.run import evaluate_policy
from pirf_ray.generate import available
from pirf_ray.policy import Policy
from pirf_ray.pretrain_presets import PRESETS, Preset
from pirf_ray.pretraining import Pretrainer, PretrainSettings

CHECKPOINT_UPDATES = 500
LINE_SECONDS = 15.0
CARD_STEPS = (10, 20, 40)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Train a base model of a PDE's fields; ends with a model directory and its card.

    Writes OUT/data.h5 (unless --data is given), OUT/checkpoint as it goes and OUT/model at the end.
    """

    out: Path
    """Directory of this training."""
    env: str = "Burgers-v0"
    """The PDE."""
    preset: str = "small"
    """smoke (seconds), small (two cores, 40 minutes) or paper (128x128, GPUs); sets the defaults of the other flags."""
    parameters: dict[str, float] = field(default_factory=dict)
    """Parameters of the PDE by name: --parameters reynolds 40."""
    init: Path | None = None
    """Base model of the same architecture, of this or another PDE, to begin with; default: random weights."""
    data: Path | None = None
    """HDF5 file of training fields; default: they are solved first."""
    training_samples: int = 32_768
    """Samples to solve where --data is not given (stream train, seed 0)."""
    resume: bool = False
    """Go on from OUT/checkpoint, with the flags that this training was started with."""
    device: str = "auto"
    """auto (cuda where there is one, else cpu), cpu, cuda or cuda:1."""
    threads: int = field(default_factory=torch.get_num_threads)
    """Torch threads. They change rounding."""
    settings: PretrainSettings = field(default_factory=PretrainSettings)

    def __post_init__(self) -> None:
        for name in ("training_samples", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.device not in ("auto", "cpu") and not re.fullmatch(r"cuda(:\d+)?", self.device):
            raise ConfigError(f"--device must be auto, cpu, cuda or cuda:1, got {self.device!r}")


def main(argv: list[str] | None = None) -> None:
    env, argv = named_env(argv)
    name = flag_value(argv, "--preset", "small")
    preset = choose("preset", name, PRESETS)(type(make_pde(env)))
    default = Arguments(
        out=tyro.MISSING,
        env=env,
        preset=name,
        parameters=preset.parameters,
        settings=preset.settings,
        training_samples=preset.training_samples,
    )
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.pretrain", description=Arguments.__doc__, default=default)
    check_out(arguments)
    torch.set_num_threads(arguments.threads)
    pde = make_pde(env, arguments.settings.network.resolution, **arguments.parameters)
    check_init(arguments)
    trainer = Pretrainer(arguments.settings, pde, training_data(arguments, pde), device(arguments))
    checkpoint = arguments.out / "checkpoint"
    if arguments.init is not None:
        trainer.start_from(arguments.init)
    if arguments.resume and checkpoint.exists():
        resume(trainer, checkpoint)
    base = ["python", "-m", "pirf_ray.pretrain", "--env", env, "--preset", name]
    files = [word for flag in ("data", "init") if (path := getattr(arguments, flag)) for word in (f"--{flag}", str(path))]
    again = [*base, *other_flags(argv), *files]
    train(trainer, checkpoint, shlex.join([*again, "--out", str(arguments.out), "--resume"]))
    finish(trainer, arguments, preset, shlex.join([*base, *other_flags(argv)]) + placeholders(arguments))


def placeholders(arguments: Arguments) -> str:
    """Files that a card cannot name for its reader."""
    return (" --data FILE.h5" if arguments.data else "") + (" --init MODEL" if arguments.init else "")


def other_flags(argv: list[str] | None) -> list[str]:
    """The given flags but those that name the PDE, the preset and files: what says the training again."""
    given, kept = iter(sys.argv[1:] if argv is None else argv), []
    for word in given:
        flag, equals, _ = word.partition("=")
        if flag in ("--env", "--preset", "--out", "--data", "--init"):
            if not equals:
                next(given, None)
        elif flag not in ("--resume", "--no-resume"):
            kept.append(word)
    return kept


def check_out(arguments: Arguments) -> None:
    """A new training needs a directory of its own, a resumed one that of before, and the data of before."""
    out = arguments.out
    if arguments.resume:
        if not out.is_dir():
            raise FileNotFoundError(f"--resume: {out}: no such directory; leave --resume out to start there")
        if (out / "checkpoint").exists() and arguments.data is None and not (out / "data.h5").exists():
            raise FileNotFoundError(f"--resume: {out} holds no data.h5: it was trained on a file; give the same one with --data")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: output directory holds another run; go on with --resume, or choose another --out")


def check_init(arguments: Arguments) -> None:
    """Told before any data is solved."""
    if arguments.init is not None:
        checkpoints.load_meta(arguments.init)


def device(arguments: Arguments) -> torch.device:
    if arguments.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(available(arguments.device))


def training_data(arguments: Arguments, pde: PDE) -> FieldFile:
    """The user's file, or OUT/data.h5, solved if it is not there yet."""
    path = arguments.data or arguments.out / "data.h5"
    if arguments.data is None and not path.exists():
        datasets.write(
            path, pde, num_samples=arguments.training_samples, seed=0, stream="train", progress=progress_bar("solving")
        )
    return FieldFile(path, pde)


def described(data: FieldFile) -> dict[str, int | str]:
    """Which data a model was trained on."""
    return {"seed": data.seed, "stream": data.stream, "samples": len(data)}


def resume(trainer: Pretrainer, checkpoint: Path) -> None:
    """Go on from a checkpoint of the same settings and the same data."""
    _, meta = checkpoints.load_meta(checkpoint)
    if meta["data"] != described(trainer.data):
        raise checkpoints.CheckpointError(
            f"{checkpoint}: was trained on {meta['data']}, the data given is {described(trainer.data)}"
        )
    trainer.load(checkpoint)


@contextmanager
def whole_updates() -> Iterator[threading.Event]:
    """Ctrl-C sets the event and lets the update end, so that a resumed training has the bits of one never stopped.

    A second Ctrl-C stops at once.
    """
    stop = threading.Event()

    def ask(*_: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)


def train(trainer: Pretrainer, checkpoint: Path, resume_command: str) -> None:
    """To the end, with a checkpoint every 500 updates; Ctrl-C leaves one too and says how to go on."""
    console = Console(stderr=True)
    started, first, printed = time.monotonic(), trainer.update_index, 0.0
    with whole_updates() as stop:
        while not trainer.finished and not stop.is_set():
            try:
                trainer.step()
            except FloatingPointError as error:
                kept = f"the last checkpoint is {checkpoint}" if checkpoint.exists() else "there is no checkpoint yet"
                raise ConfigError(f"{error}; {kept}") from error
            if trainer.update_index % CHECKPOINT_UPDATES == 0:
                trainer.save(checkpoint)
            if time.monotonic() - printed > LINE_SECONDS or trainer.finished:
                printed = time.monotonic()
                rate = (trainer.update_index - first) / (printed - started)
                left = (trainer.settings.updates - trainer.update_index) / rate / 60
                console.print(
                    f"update {trainer.update_index}/{trainer.settings.updates} | loss {trainer.mean_loss:.4f} | "
                    f"{rate * trainer.settings.batch:.0f} images/s | {left:.1f} min left",
                    highlight=False,
                )
        trainer.save(checkpoint)
    if stop.is_set():
        raise KeyboardInterrupt(f"stopped with a checkpoint; go on with: {resume_command}")


def finish(trainer: Pretrainer, arguments: Arguments, preset: Preset, command: str) -> None:
    """Write OUT/model, the averaged weights, and its card with figures measured on seeds that training never saw."""
    path = arguments.out / "model"
    meta = {
        "kind": "base",
        "images": trainer.update_index * trainer.settings.batch,
        "mean_loss": trainer.mean_loss,
        "init": trainer.init,
        "data": described(trainer.data),
    }
    config = checkpoints.read_json(arguments.out / "checkpoint" / checkpoints.CONFIG)
    checkpoints.save(path, info=trainer.info, model=None, ema=trainer.ema.tensors, optimizer=None, config=config, meta=meta)
    _, denoiser = checkpoints.load_denoiser(path)
    policy = Policy(denoiser).to(trainer.device)
    results = {
        steps: evaluate_policy(
            trainer.pde,
            policy,
            SamplerSettings(num_steps=steps),
            samples=preset.card_samples,
            real=preset.card_real,
            seed=1000,
            groups=("base",),
            progress=progress_bar(f"evaluating N={steps}"),
        ).result
        for steps in CARD_STEPS
    }
    write_card(path / "CARD.md", trainer.info, meta, config, results, command=command)
    Console().print(f"model: {path}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
