"""``python -m pirf_ray.generate``: generate samples of a model as HDF5 in physical units."""

from dataclasses import dataclass
from pathlib import Path

from envs.common.checks import at_least, not_negative
from pirf_ray.cli.devices import available
from pirf_ray.cli.errors import run_command
from pirf_ray.cli.flags import not_there, parse
from pirf_ray.cli.progress import progress_bar
from pirf_ray.diffusion.model import BASE, TUNED
from pirf_ray.evaluation.models import GENERATE_STREAM, sampler_record
from pirf_ray.evaluation.samples import write_samples
from pirf_ray.methods.running import sampled_as
from pirf_ray.training.models import load_model, with_sampling


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Generate samples with a fine-tuned or base model and write them to HDF5 (group ``tuned`` or ``base``, physical units)."""

    checkpoint: Path
    """A run directory (its kept model is used), one of its checkpoints, a base model, or a shipped model's name."""
    out: Path
    """File to write; never overwritten."""
    method: str = ""
    """Published method whose steering, sampler and finisher make the samples; default: the run's own. Your own: module:name."""
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

    def __post_init__(self) -> None:
        at_least(self, 1, "num_samples", "batch")
        if self.corrections is not None:
            not_negative(self, "corrections")
        if self.num_steps is not None:
            at_least(self, 1, "num_steps")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.generate", description=Arguments.__doc__)
    not_there(arguments.out, "out", "samples")
    device = available(arguments.device)
    loaded = load_model(arguments.checkpoint)
    model = sampled_as(arguments.method, loaded.model) if arguments.method else loaded.model
    model = with_sampling(model, num_steps=arguments.num_steps, corrections=arguments.corrections).to(device)
    fields = model.sample(
        range(arguments.num_samples),
        seed=arguments.seed,
        stream=GENERATE_STREAM,
        batch=arguments.batch,
        progress=progress_bar("generating"),
    )[TUNED]
    group = TUNED if loaded.config else BASE
    write_samples(arguments.out, model.pde, {group: fields}, {"seed": arguments.seed, "stream": GENERATE_STREAM})
    how = sampler_record(model)
    print(f"{arguments.out}: {arguments.num_samples} samples, NFE {how.nfe}, {how.corrections} corrections")


if __name__ == "__main__":
    run_command(main)
