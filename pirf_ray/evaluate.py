"""``python -m pirf_ray.evaluate``: base, tuned and real side by side, on seeds that no training has seen."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from envs.datasets import validate
from pirf_ray.checkpoints import write_json
from pirf_ray.cli import parse, print_table, progress_bar, run_command
from pirf_ray.config import SamplerSettings
from pirf_ray.evaluation.figures import TABLE_WIDTH, result_table
from pirf_ray.evaluation.run import evaluate_policy
from pirf_ray.generate import available
from pirf_ray.runs import load_policy


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Evaluate a model: residuals over their floors, fidelity to held-out solver data, re-solve error.

    Noise and held-out data come from random streams that neither training nor the choice of the checkpoint uses.
    """

    checkpoint: Path
    """A run directory (its kept model is used), one of its checkpoints, or a base model."""
    samples: int = 1024
    """Samples of the base and of the tuned model, from the same noise."""
    real: int = 2048
    """Held-out solver samples that they are compared with; as many again as --samples are the real-against-real column."""
    num_steps: int | None = None
    """N, steps of the sampler; default: those of the run."""
    seed: int = 1000
    """Seed of the noise and of the held-out data."""
    data: Path | None = None
    """HDF5 file of held-out fields instead of solving them."""
    out: Path | None = None
    """JSON file for all figures."""
    batch: int = 64
    """Samples at once."""
    threads: int = torch.get_num_threads()
    """Torch threads."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""


def main(argv: list[str] | None = None) -> None:
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.evaluate", description=Arguments.__doc__)
    if arguments.samples < 2 or arguments.real < 2 or arguments.batch < 1:
        raise ValueError("--samples and --real must be at least 2 and --batch at least 1")
    if arguments.out is not None and arguments.out.exists():
        raise FileExistsError(f"--out {arguments.out} exists; results are never overwritten")
    info, policy, config = load_policy(arguments.checkpoint)
    pde = info.pde()
    if arguments.data is not None:
        validate(arguments.data, pde)
    torch.set_num_threads(arguments.threads)
    sampler = config.sampler if config else SamplerSettings()
    if arguments.num_steps is not None:
        sampler = replace(sampler, num_steps=arguments.num_steps)
    evaluation = evaluate_policy(
        pde,
        policy.to(available(arguments.device)),
        sampler,
        samples=arguments.samples,
        real=arguments.real,
        seed=arguments.seed,
        data=arguments.data,
        batch=arguments.batch,
        progress=progress_bar("generating"),
        groups=("base", "tuned") if config else ("base",),
    )
    if arguments.out is not None:
        write_json(arguments.out, evaluation.result)
    print_table(result_table(evaluation.result), TABLE_WIDTH)


if __name__ == "__main__":
    run_command(main)
