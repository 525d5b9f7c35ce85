"""``python -m pirf_ray.generate``: samples of a run, a checkpoint or a base model, as HDF5 in physical units."""

from dataclasses import dataclass
from pathlib import Path

import torch

from envs.denoising import DenoisingProcess
from pirf_ray.cli import parse, progress_bar, run_command
from pirf_ray.config import SamplerSettings
from pirf_ray.correction import make_correction
from pirf_ray.evaluation.samples import write_samples
from pirf_ray.rollout import generate
from pirf_ray.runs import load_policy


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Generate samples with a fine-tuned or base model and write them to HDF5 (group ``tuned``, physical units)."""

    checkpoint: Path
    """A run directory (its kept model is used), one of its checkpoints, or a base model."""
    out: Path
    """File to write; never overwritten."""
    num_samples: int = 256
    """Samples to generate."""
    num_steps: int | None = None
    """N, steps of the sampler; default: those of the run."""
    corrections: int | None = None
    """Steps down each finished sample's own residual; default: those of the run."""
    seed: int = 0
    """Seed of the noise; sample i depends on seed and i alone."""
    batch: int = 64
    """Samples at once."""
    device: str = "cpu"
    """cpu, cuda or cuda:1."""


def main(argv: list[str] | None = None) -> None:
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.generate", description=Arguments.__doc__)
    if arguments.out.exists():
        raise FileExistsError(f"--out {arguments.out} exists; samples are never overwritten")
    if arguments.corrections is not None and arguments.corrections < 0:
        raise ValueError(f"--corrections must not be negative, got {arguments.corrections}")
    if arguments.num_samples < 1 or arguments.batch < 1:
        raise ValueError(f"--num-samples and --batch must be at least 1, got {arguments.num_samples} and {arguments.batch}")
    info, policy, config = load_policy(arguments.checkpoint)
    sampler = config.sampler if config else SamplerSettings()
    pde = info.pde()
    process = DenoisingProcess(arguments.num_steps or sampler.num_steps, sampler.solver)
    steps = sampler.corrections if arguments.corrections is None else arguments.corrections
    correction = make_correction(pde, steps, config.pirf.operator if config else "") if steps else None
    outputs = generate(
        policy.to(available(arguments.device)),
        process,
        shape=pde.shape,
        seed=arguments.seed,
        stream="generate",
        sample_ids=range(arguments.num_samples),
        batch=arguments.batch,
        progress=progress_bar("generating"),
        groups=("tuned",),
        correction=correction,
    )
    fields = {"tuned" if config else "base": pde.normalizer.to_physical(outputs["tuned"])}
    write_samples(arguments.out, pde, fields, {"seed": arguments.seed, "stream": "generate"})
    print(f"{arguments.out}: {arguments.num_samples} samples, NFE {process.num_evaluations}, {steps} corrections")


def available(device: str) -> str:
    """The device if this machine has it; ValueError otherwise."""
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"--device {device}: this machine has no usable GPU")
    return device


if __name__ == "__main__":
    run_command(main)
