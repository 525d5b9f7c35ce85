"""``python -m pirf_ray.pretrain``: train a base model by denoising score matching."""

import os
import re
import shlex
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console

from envs import datasets
from envs.datasets import FieldFile
from envs.pdes import PDE, make_pde
from pirf_ray import checkpoints
from pirf_ray.cards import write_card
from pirf_ray.cli import choose, flag_value, named_env, parse, progress_bar, run_command, use_address
from pirf_ray.config import ConfigError, SamplerSettings
from pirf_ray.evaluation.run import evaluate_policy
from pirf_ray.generate import available
from pirf_ray.policy import Policy
from pirf_ray.pretrain_loop import Lines, Workers, begin, train_here
from pirf_ray.pretrain_presets import PRESETS, Preset
from pirf_ray.pretraining import Pretrainer, PretrainSettings, check_share

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
    """Torch threads of this process. They change rounding."""
    compile: bool = False
    """Compile the network with torch.compile: a minute or more at the start, then faster (7 % on two cores). Changes rounding."""
    settings: PretrainSettings = field(default_factory=PretrainSettings)
    workers: Workers = field(default_factory=Workers)

    def __post_init__(self) -> None:
        for name in ("training_samples", "threads"):
            if getattr(self, name) < 1:
                raise ConfigError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(self, name)}")
        if self.device not in ("auto", "cpu") and not re.fullmatch(r"cuda(:\d+)?", self.device):
            raise ConfigError(f"--device must be auto, cpu, cuda or cuda:1, got {self.device!r}")
        if self.init is not None:
            checkpoints.load_meta(self.init)

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint"


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
    workers = ray_workers(arguments)
    on_gpus = workers.worker_gpus if workers else device(arguments).type == "cuda"
    arguments = replace(arguments, settings=arguments.settings.on("cuda" if on_gpus else "cpu"))
    pde = make_pde(env, arguments.settings.network.resolution, **arguments.parameters)
    trainer = train(arguments, pde, workers, resume_command(arguments, argv))
    finish(trainer, arguments, preset, card_command(arguments, argv))


# --- the command, said again ---


def resume_command(arguments: Arguments, argv: list[str]) -> str:
    paths = {"data": arguments.data, "init": arguments.init, "address": arguments.workers.address, "out": arguments.out}
    given = [word for flag, value in paths.items() if value is not None for word in (f"--{flag}", str(value))]
    return shlex.join([*repeated(arguments, argv), *given, "--resume"])


def card_command(arguments: Arguments, argv: list[str]) -> str:
    """Without the files that a card cannot name for its reader."""
    placeholders = (" --data FILE.h5" if arguments.data else "") + (" --init MODEL" if arguments.init else "")
    return shlex.join(repeated(arguments, argv)) + placeholders


def repeated(arguments: Arguments, argv: list[str]) -> list[str]:
    """The command with the given flags but those of files and places."""
    given, kept = iter(argv), []
    for word in given:
        flag, equals, _ = word.partition("=")
        if flag in ("--env", "--preset", "--out", "--data", "--init", "--address"):
            if not equals:
                next(given, None)
        elif flag not in ("--resume", "--no-resume"):
            kept.append(word)
    return ["python", "-m", "pirf_ray.pretrain", "--env", arguments.env, "--preset", arguments.preset, *kept]


# --- where, and from what ---


def check_out(arguments: Arguments) -> None:
    """A new training needs a directory of its own, a resumed one that of before, and the data of before."""
    out = arguments.out
    if arguments.resume:
        if not out.is_dir():
            raise FileNotFoundError(f"--resume: {out}: no such directory; leave --resume out to start there")
        if arguments.checkpoint.exists() and arguments.data is None and not (out / "data.h5").exists():
            raise FileNotFoundError(f"--resume: {out} holds no data.h5: it was trained on a file; give the same one with --data")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out}: output directory holds another run; go on with --resume, or choose another --out")


def device(arguments: Arguments) -> torch.device:
    """Of this process."""
    if arguments.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(available(arguments.device))


def ray_workers(arguments: Arguments) -> Workers | None:
    """The Ray Train workers to use, all checked, or None: train in this process. Joins the cluster, if one is named."""
    asked = arguments.workers
    address = asked.address or (os.environ.get("RAY_ADDRESS") if asked.workers > 1 else None)
    gpus = cluster_gpus(address) if address else torch.cuda.device_count()
    if arguments.device == "cpu" or asked.worker_gpus == 0:
        gpus = 0
    automatic = gpus if address or arguments.device == "auto" else 1
    number = asked.workers or max(1, automatic)
    if number == 1 and not address:
        return None
    if ":" in arguments.device:
        raise ConfigError(f"--device {arguments.device} names one GPU, --workers {number} choose theirs: leave it out")
    check_share(arguments.settings.batch, number)
    each = int(gpus > 0) if asked.worker_gpus is None else asked.worker_gpus
    workers = replace(asked, workers=number, worker_gpus=each, address=address)
    from pirf_ray.distributed.pretrain_loop import check_workers  # Ray takes seconds to import

    check_workers(workers)
    return workers


def cluster_gpus(address: str) -> int:
    use_address(address)
    from pirf_ray.distributed import driver

    return int(driver.join(address).get("GPU", 0))


def training_data(arguments: Arguments, pde: PDE) -> FieldFile:
    """The user's file, or OUT/data.h5, solved if it is not there yet."""
    path = arguments.data or arguments.out / "data.h5"
    if arguments.data is None and not path.exists():
        datasets.write(
            path, pde, num_samples=arguments.training_samples, seed=0, stream="train", progress=progress_bar("solving")
        )
    return FieldFile(path, pde)


# --- train, and measure ---


def train(arguments: Arguments, pde: PDE, workers: Workers | None, resume_with: str) -> Pretrainer:
    """To the end; returns the finished training. Ctrl-C leaves a checkpoint and says how to go on."""
    data = training_data(arguments, pde)
    where = device(arguments) if workers is None else torch.device("cpu")  # the workers' GPUs are theirs
    trainer = Pretrainer(arguments.settings, pde, data, where, compiled=arguments.compile and workers is None)
    begin(trainer, arguments.checkpoint, arguments.init)
    lines = Lines(arguments.settings.updates, arguments.settings.batch, Console(stderr=True))
    try:
        if workers is None:
            train_here(trainer, arguments.checkpoint, lines)
        elif not trainer.finished:
            train_on_ray(trainer, arguments, workers, lines)
    except KeyboardInterrupt:
        if not arguments.checkpoint.exists():
            raise
        raise KeyboardInterrupt(f"stopped with a checkpoint; go on with: {resume_with}") from None
    return trainer


def train_on_ray(trainer: Pretrainer, arguments: Arguments, workers: Workers, lines: Lines) -> None:
    from pirf_ray.distributed.pretrain_loop import PretrainJob, run_pretraining

    job = PretrainJob(
        env_id=trainer.pde.env_id,
        parameters=trainer.pde.parameters,
        settings=arguments.settings,
        data=trainer.data.path.resolve(),
        init=arguments.init and arguments.init.resolve(),
        checkpoint=arguments.checkpoint.resolve(),
        compiled=arguments.compile,
        workers=workers,
    )
    run_pretraining(job, lines, begun=trainer.update_index)
    trainer.load(arguments.checkpoint)


def finish(trainer: Pretrainer, arguments: Arguments, preset: Preset, command: str) -> None:
    """Write OUT/model, the averaged weights, and its card with figures measured on seeds that training never saw."""
    path, meta = arguments.out / "model", trainer.meta()
    config = checkpoints.read_json(arguments.checkpoint / checkpoints.CONFIG)
    checkpoints.save(path, info=trainer.info, model=None, ema=trainer.ema.tensors, optimizer=None, config=config, meta=meta)
    _, denoiser = checkpoints.load_denoiser(path)
    policy = Policy(denoiser).to(device(arguments))
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
