"""``python -m pirf_ray.pretrain``: train a base model by denoising score matching."""

from dataclasses import replace

import torch
from rich.console import Console

from pirf_ray.cli.errors import run_command
from pirf_ray.cli.pretraining import card_command, finish, parse_pretrain, ray_workers, train


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments, preset = parse_pretrain(argv)
    torch.set_num_threads(arguments.threads)
    workers = ray_workers(arguments)
    on_gpus = workers.worker_gpus if workers else arguments.place().type == "cuda"
    arguments = replace(arguments, settings=arguments.settings.on("cuda" if on_gpus else "cpu"))
    trainer = train(arguments, workers)
    path = finish(trainer, arguments, preset, card_command(arguments))
    Console().print(f"model: {path}", soft_wrap=True)


if __name__ == "__main__":
    run_command(main)
