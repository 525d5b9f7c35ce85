"""``python -m pirf_ray.pretrain``: train a base model by denoising score matching."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.console import Console

from envs import datasets
from envs.datasets import FieldFile
from envs.pdes import PDE, make_pde
from pirf_ray import checkpoints
from pirf_ray.cards import write_card
from pirf_ray.cli import check_env, choose, flag_value, parse, progress_bar, run_command
from pirf_ray.config import SamplerSettings
from pirf_ray.evaluation.run import evaluate_policy
from pirf_ray.generate import available
from pirf_ray.networks import NetworkConfig
from pirf_ray.policy import Policy
from pirf_ray.pretraining import Pretrainer, PretrainSettings

CHECKPOINT_UPDATES = 500
LINE_SECONDS = 15.0
CARD_STEPS = (10, 20, 40)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What a preset decides."""

    settings: PretrainSettings
    training_samples: int
    card_samples: int
    card_real: int


def smoke(pde_type: type[PDE]) -> Preset:
    """Seconds: for tests."""
    pde = pde_type(8)
    network = NetworkConfig(
        resolution=8, channels=len(pde.channels), model_channels=8, channel_mult=(1, 2), num_blocks=1, periodic=pde.grid.periodic
    )
    settings = PretrainSettings(network=network, images=640, batch=8, warmup_images=64, noise_mean=-2.5, noise_std=1.5)
    return Preset(settings=settings, training_samples=64, card_samples=16, card_real=32)


def small(pde_type: type[PDE]) -> Preset:
    """40 minutes on two cores: what ships. The noise law sits where the data's small scales are decided (sigma_data .14)."""
    pde = pde_type(32)
    network = NetworkConfig(channels=len(pde.channels), num_blocks=1, periodic=pde.grid.periodic)
    settings = PretrainSettings(network=network, images=224_000, noise_mean=-2.5, noise_std=1.5)
    return Preset(settings=settings, training_samples=32_768, card_samples=1024, card_real=2048)


def paper(pde_type: type[PDE]) -> Preset:
    """128x128 with the architecture of Yuan et al. 2025 and EDM's noise law, for GPUs."""
    pde = pde_type(128)
    network = NetworkConfig(
        resolution=128,
        channels=len(pde.channels),
        model_channels=128,
        channel_mult=(2, 2, 2),
        num_blocks=4,
        attn_resolutions=(16,),
        periodic=pde.grid.periodic,
    )
    settings = PretrainSettings(
        network=network, images=10_000_000, batch=128, learning_rate=2e-4, warmup_images=1_000_000, ema_decay=0.9995
    )
    return Preset(settings=settings, training_samples=50_000, card_samples=1024, card_real=2048)


PRESETS: dict[str, Callable[[type[PDE]], Preset]] = {"smoke": smoke, "small": small, "paper": paper}


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
    data: Path | None = None
    """HDF5 file of training fields; default: they are solved first."""
    training_samples: int = 32_768
    """Samples to solve where --data is not given (stream train, seed 0)."""
    resume: bool = False
    """Go on from OUT/checkpoint."""
    device: str = "cuda" if torch.cuda.is_available() else "cpu"
    """cpu, cuda or cuda:1."""
    threads: int = torch.get_num_threads()
    """Torch threads."""
    settings: PretrainSettings = field(default_factory=PretrainSettings)


def main(argv: list[str] | None = None) -> None:
    env = check_env(flag_value(argv, "--env", "Burgers-v0"))
    name = flag_value(argv, "--preset", "small")
    preset = choose("preset", name, PRESETS)(type(make_pde(env)))
    default = Arguments(
        out=Path(flag_value(argv, "--out", "")), preset=name, settings=preset.settings, training_samples=preset.training_samples
    )
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.pretrain", description=Arguments.__doc__, default=default)
    if str(arguments.out) == ".":
        raise ValueError("--out is missing: the directory of this training")
    checkpoint = arguments.out / "checkpoint"
    if not arguments.resume and arguments.out.exists() and any(arguments.out.iterdir()):
        raise FileExistsError(
            f"{arguments.out}: output directory holds another run; go on with --resume, or choose another --out"
        )
    torch.set_num_threads(arguments.threads)
    device = torch.device(available(arguments.device))
    data = training_data(arguments)
    trainer = Pretrainer(arguments.settings, env, data, device)
    if arguments.resume and checkpoint.exists():
        trainer.load(checkpoint)
    train(trainer, checkpoint, f"python -m pirf_ray.pretrain --env {env} --preset {name} --out {arguments.out} --resume")
    finish(trainer, arguments, preset, command=f"python -m pirf_ray.pretrain --env {env} --preset {name}")


def training_data(arguments: Arguments) -> FieldFile:
    """The user's file, or OUT/data.h5, solved if it is not there yet."""
    pde = make_pde(arguments.env, arguments.settings.network.resolution)
    path = arguments.data or arguments.out / "data.h5"
    if arguments.data is None and not path.exists():
        datasets.write(
            path, pde, num_samples=arguments.training_samples, seed=0, stream="train", progress=progress_bar("solving")
        )
    return FieldFile(path, pde)


def train(trainer: Pretrainer, checkpoint: Path, resume_command: str) -> None:
    """To the end, with a checkpoint every 500 updates; Ctrl-C leaves one too and says how to go on."""
    console = Console(stderr=True)
    started, first, printed = time.monotonic(), trainer.update_index, 0.0
    try:
        while not trainer.finished:
            trainer.step()
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
    except KeyboardInterrupt:
        trainer.save(checkpoint)
        raise KeyboardInterrupt(f"stopped with a checkpoint; go on with: {resume_command}") from None
    trainer.save(checkpoint)


def finish(trainer: Pretrainer, arguments: Arguments, preset: Preset, *, command: str) -> None:
    """Write OUT/model, the averaged weights, and its card with figures measured on seeds that training never saw."""
    path = arguments.out / "model"
    meta = {
        "kind": "base",
        "images": trainer.update_index * trainer.settings.batch,
        "mean_loss": trainer.mean_loss,
        "data": {"seed": trainer.data.seed, "stream": trainer.data.stream, "samples": len(trainer.data)},
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
