"""Flags of ``pretrain``, where it trains, and what it writes at its end."""

import os
import re
import shlex
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import tyro
from rich.console import Console

from envs.common.checks import ConfigError, at_least
from envs.common.files import DirectoryTakenError, read_json
from envs.common.registry import choose
from envs.data import datasets
from envs.data.datasets import FieldFile
from envs.pdes import PDE, make_pde
from envs.pdes.base import require
from pirf_ray.cli.data_files import solved_count
from pirf_ray.cli.devices import available, best_device
from pirf_ray.cli.flags import flag_value, named_env, parse, use_address
from pirf_ray.cli.progress import progress_bar
from pirf_ray.diffusion import checkpoints
from pirf_ray.evaluation.cards import measure_card, write_card
from pirf_ray.pretraining.loop import Lines, Workers, begin, train_here
from pirf_ray.pretraining.presets import PRESETS, Preset
from pirf_ray.pretraining.trainer import Pretrainer, PretrainSettings, check_share

TRAIN_STREAM = "train"


@dataclass(frozen=True, kw_only=True)
class PretrainArguments:
    """Train a base model of a PDE's fields; ends with a model directory and its card.

    Writes OUT/data.h5 (unless --data is given), OUT/checkpoint during training and OUT/model at the end.
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
    """HDF5 file of training fields; default: they are solved first. A PDE without a solver needs one."""
    training_samples: int = 32_768
    """Samples to solve if --data is not given (stream train, seed 0)."""
    resume: bool = False
    """Continue from OUT/checkpoint, with the flags that this training was started with."""
    device: str = "auto"
    """auto (cuda if there is one, else cpu), cpu, cuda or cuda:1."""
    threads: int = field(default_factory=torch.get_num_threads)
    """Torch threads of this process. They change rounding."""
    compile: bool = False
    """Compile the network with torch.compile: a minute or more at the start, then faster updates. Changes rounding."""
    settings: PretrainSettings = field(default_factory=PretrainSettings)
    workers: Workers = field(default_factory=Workers)
    given: tyro.conf.Suppress[tuple[str, ...]] = ()
    """The command line."""

    def __post_init__(self) -> None:
        at_least(self, 1, "training_samples", "threads")
        if self.device not in ("auto", "cpu") and not re.fullmatch(r"cuda(:\d+)?", self.device):
            raise ConfigError(f"--device must be auto, cpu, cuda or cuda:1, got {self.device!r}")
        if self.init is not None:
            checkpoints.load_meta(self.init)

    @property
    def checkpoint(self) -> Path:
        """Return the directory of the training's checkpoint."""
        return self.out / "checkpoint"

    def place(self) -> torch.device:
        """Return the device of this process."""
        return torch.device(best_device() if self.device == "auto" else available(self.device))

    def pde(self) -> PDE:
        """Return the PDE at the network's resolution."""
        return make_pde(self.env, self.settings.network.resolution, **self.parameters)


def parse_pretrain(argv: list[str] | None) -> tuple[PretrainArguments, Preset]:
    """Parse the flags of ``pretrain``; the preset sets the defaults of the other flags. The output directory is checked."""
    env, argv = named_env(argv)
    name = flag_value(argv, "--preset", "small")
    preset = choose("preset", name, PRESETS)(type(make_pde(env)))
    default = PretrainArguments(
        out=tyro.MISSING,
        env=env,
        preset=name,
        parameters=preset.parameters,
        settings=preset.settings,
        training_samples=preset.training_samples,
    )
    arguments = parse(
        PretrainArguments,
        argv=argv,
        prog="python -m pirf_ray.pretrain",
        description=PretrainArguments.__doc__,
        default=default,
    )
    arguments = replace(arguments, given=tuple(sys.argv[1:] if argv is None else argv))
    _check_data(arguments)
    _check_out(arguments)
    return arguments, preset


def _check_data(arguments: PretrainArguments) -> None:
    """Check that training data that are not given can be solved."""
    if arguments.data is None:
        pde = arguments.pde()
        require(pde, "solve", "pretraining without --data", "give training fields: --data FILE")
        solved_count(pde, TRAIN_STREAM, arguments.training_samples, "--training-samples", arguments.training_samples)


def _check_out(arguments: PretrainArguments) -> None:
    """Check that a new training has a directory of its own, a resumed one its own of before, and the data of before."""
    out = arguments.out
    if arguments.resume:
        if not out.is_dir():
            raise FileNotFoundError(f"--resume: {out}: no such directory; leave --resume out to start there")
        if arguments.checkpoint.exists() and arguments.data is None and not (out / "data.h5").exists():
            raise FileNotFoundError(f"--resume: {out} holds no data.h5: it was trained on a file; give the same one with --data")
    elif out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DirectoryTakenError(
            f"{out}: output directory holds another run; continue it with --resume, or choose another --out"
        )


# --- the command, said again ---


def resume_command(arguments: PretrainArguments) -> str:
    """Return the command that continues the training."""
    paths = {"data": arguments.data, "init": arguments.init, "address": arguments.workers.address, "out": arguments.out}
    given = [word for flag, value in paths.items() if value is not None for word in (f"--{flag}", str(value))]
    return shlex.join([*_repeated(arguments), *given, "--resume"])


def card_command(arguments: PretrainArguments) -> str:
    """Return the command without the files that a card cannot name for its reader."""
    placeholders = (" --data FILE.h5" if arguments.data else "") + (" --init MODEL" if arguments.init else "")
    return shlex.join(_repeated(arguments)) + placeholders


def _repeated(arguments: PretrainArguments) -> list[str]:
    """Return the command with the given flags, without files and places."""
    given, kept = iter(arguments.given), []
    for word in given:
        flag, equals, _ = word.partition("=")
        if flag in ("--env", "--preset", "--out", "--data", "--init", "--address"):
            if not equals:
                next(given, None)
        elif flag not in ("--resume", "--no-resume"):
            kept.append(word)
    return ["python", "-m", "pirf_ray.pretrain", "--env", arguments.env, "--preset", arguments.preset, *kept]


# --- where, and from what ---


def ray_workers(arguments: PretrainArguments) -> Workers | None:
    """Return the Ray Train workers to use, all checked, or None: train in this process. Joins the cluster, if one is named."""
    asked = arguments.workers
    address = asked.address or (os.environ.get("RAY_ADDRESS") if asked.workers > 1 else None)
    gpus = _cluster_gpus(address) if address else torch.cuda.device_count()
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
    from pirf_ray.distributed.pretraining import check_workers  # Ray takes seconds to import

    check_workers(workers)
    return workers


def _cluster_gpus(address: str) -> int:
    use_address(address)
    from pirf_ray.distributed import cluster

    cluster.join(address)
    return int(sum(node["GPU"] for node in cluster.node_resources()))


def _training_data(arguments: PretrainArguments, pde: PDE) -> FieldFile:
    """Return the user's file, or OUT/data.h5, solved if it is not there yet."""
    path = arguments.data or arguments.out / "data.h5"
    if arguments.data is None and not path.exists():
        datasets.write(
            path, pde, num_samples=arguments.training_samples, seed=0, stream=TRAIN_STREAM, progress=progress_bar("solving")
        )
    return FieldFile(path, pde)


# --- train, and measure ---


def train(arguments: PretrainArguments, workers: Workers | None) -> Pretrainer:
    """Train to the end; return the finished training. Ctrl-C leaves a checkpoint and says how to continue."""
    pde = arguments.pde()
    data = _training_data(arguments, pde)
    where = arguments.place() if workers is None else torch.device("cpu")  # the workers' GPUs are theirs
    trainer = Pretrainer(arguments.settings, pde, data, where, compiled=arguments.compile and workers is None)
    begin(trainer, arguments.checkpoint, arguments.init)
    lines = Lines(arguments.settings.updates, arguments.settings.batch, Console(stderr=True))
    try:
        if workers is None:
            train_here(trainer, arguments.checkpoint, lines)
        elif not trainer.finished:
            _train_on_ray(trainer, arguments, workers, lines)
    except KeyboardInterrupt:
        if not arguments.checkpoint.exists():
            raise
        raise KeyboardInterrupt(f"stopped with a checkpoint; continue with: {resume_command(arguments)}") from None
    return trainer


def _train_on_ray(trainer: Pretrainer, arguments: PretrainArguments, workers: Workers, lines: Lines) -> None:
    from pirf_ray.distributed.pretraining import PretrainJob, run_pretraining

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


def finish(trainer: Pretrainer, arguments: PretrainArguments, preset: Preset, command: str) -> Path:
    """Write OUT/model, the averaged weights, and its card, measured on seeds that training never saw; return OUT/model."""
    path, meta = arguments.out / "model", trainer.meta()
    config = read_json(arguments.checkpoint / checkpoints.CONFIG)
    checkpoints.save(path, info=trainer.info, model=None, ema=trainer.ema.tensors, optimizer=None, config=config, meta=meta)
    _, denoiser = checkpoints.load_denoiser(path)
    results = measure_card(
        trainer.info,
        denoiser,
        samples=preset.card_samples,
        real=preset.card_real,
        progress=progress_bar,
        device=str(arguments.place()),
    )
    write_card(path / "CARD.md", trainer.info, meta, config, results, command=command)
    return path
