"""``python -m pirf_ray.evaluate``: base, tuned and real side by side, on seeds that no training has seen."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from envs.datasets import validate
from envs.pdes import PDE
from pirf_ray.checkpoints import write_json
from pirf_ray.cli import parse, print_table, progress_bar, run_command
from pirf_ray.config import SamplerSettings, TrainConfig
from pirf_ray.evaluation.figures import TABLE_WIDTH, result_table
from pirf_ray.evaluation.run import evaluate_policy
from pirf_ray.generate import available
from pirf_ray.policy import Policy
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
    corrections: int | None = None
    """Steps down each finished sample's own residual; default: those of the run."""
    interpolate: str | None = None
    """START:STOP:STEP, such as 0:1:0.1: compare theta_0 + alpha (theta - theta_0) instead, theta_0 the base and theta the run's
    weights, and name the best alpha inside the run's fidelity guard. With --out, FILE.png is its picture."""
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
    for path in results(arguments):
        if path.exists():
            raise FileExistsError(f"--out {path} exists; results are never overwritten")
    info, policy, config = load_policy(arguments.checkpoint)
    pde = info.pde()
    if arguments.data is not None:
        validate(arguments.data, pde)
    torch.set_num_threads(arguments.threads)
    sampler = sampler_of(arguments, config)
    policy.to(available(arguments.device))
    if arguments.interpolate is not None:
        draw_interpolation(arguments, pde, policy, config, sampler)
        return
    evaluation = evaluate_policy(
        pde,
        policy,
        sampler,
        samples=arguments.samples,
        real=arguments.real,
        seed=arguments.seed,
        data=arguments.data,
        batch=arguments.batch,
        progress=progress_bar("generating"),
        groups=("base", "tuned") if config else ("base",),
        rewarded=rewarded_operator(config, pde),
    )
    if arguments.out is not None:
        write_json(arguments.out, evaluation.result)
    print_table(result_table(evaluation.result), TABLE_WIDTH)


def results(arguments: Arguments) -> list[Path]:
    """Files that will be written."""
    if arguments.out is None:
        return []
    return [arguments.out] if arguments.interpolate is None else [arguments.out, arguments.out.with_suffix(".png")]


def sampler_of(arguments: Arguments, config: TrainConfig | None) -> SamplerSettings:
    """The run's sampler, but for what is asked otherwise."""
    sampler = config.sampler if config else SamplerSettings()
    if arguments.num_steps is not None:
        sampler = replace(sampler, num_steps=arguments.num_steps)
    return sampler if arguments.corrections is None else replace(sampler, corrections=arguments.corrections)


def rewarded_operator(config: TrainConfig | None, pde: PDE) -> str:
    return (config.pirf.operator if config else "") or pde.default_operator


def draw_interpolation(
    arguments: Arguments, pde: PDE, policy: Policy, config: TrainConfig | None, sampler: SamplerSettings
) -> None:
    """``--interpolate``: table, and with ``--out`` figures and picture."""
    from pirf_ray.evaluation.interpolation import draw_frontier, frontier_table, interpolate, parse_alphas

    alphas = parse_alphas(arguments.interpolate or "")
    if config is None:
        raise ValueError(f"--interpolate needs a fine-tuned run: {arguments.checkpoint} is a base model")
    frontier = interpolate(
        pde,
        policy,
        sampler,
        config.guard,
        alphas,
        samples=arguments.samples,
        real=arguments.real,
        seed=arguments.seed,
        data=arguments.data,
        batch=arguments.batch,
        progress=progress_bar("generating"),
        rewarded=rewarded_operator(config, pde),
    )
    if arguments.out is not None:
        write_json(arguments.out, frontier.to_json())
        draw_frontier(arguments.out.with_suffix(".png"), frontier, config.guard)
    print_table(frontier_table(frontier), TABLE_WIDTH)
    best = (
        "no alpha is inside the guard's limits" if frontier.best is None else f"best inside the guard's limits: {frontier.best:g}"
    )
    print(best)


if __name__ == "__main__":
    run_command(main)
