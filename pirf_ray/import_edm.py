"""``python -m pirf_ray.import_edm``: import a network pickle of EDM or DiffusionPDE as a base model; none of its code is run."""

from dataclasses import asdict, dataclass, field
from pathlib import Path

import tyro

from envs.common.checks import positive
from envs.pdes import make_pde
from pirf_ray.cli.errors import run_command
from pirf_ray.cli.flags import check_env, not_there, parse
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.foreign.edm import check_fits, load


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Turn a network pickle of EDM or DiffusionPDE into a base model for train, generate and evaluate."""

    file: tyro.conf.Positional[Path]
    """The network-snapshot pickle (.pkl). None of its code is run."""
    env: str
    """PDE of the model, such as Burgers-v0; its channels, in its order, must be the network's."""
    out: Path
    """Directory to write; never overwritten."""
    parameters: dict[str, float] = field(default_factory=dict)
    """Parameters of the PDE by name: --parameters reynolds 1000."""
    key: str = "ema"
    """Which network of the file."""
    max_gigabytes: float = 4.0
    """Larger files are refused: a file is read into memory."""

    def __post_init__(self) -> None:
        positive(self, "max_gigabytes")


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    arguments = parse(Arguments, argv=argv, prog="python -m pirf_ray.import_edm", description=Arguments.__doc__)
    env = check_env(arguments.env)
    make_pde(env, None, **arguments.parameters)
    not_there(arguments.out, "out", "models")
    denoiser, notes, sha256 = load(arguments.file, key=arguments.key, max_gigabytes=arguments.max_gigabytes)
    check_fits(denoiser, env, arguments.file)
    parameters = make_pde(env, denoiser.config.resolution, **arguments.parameters).parameters
    info = ModelInfo(env_id=env, network=denoiser.config, sigma_data=denoiser.sigma_data, parameters=parameters)
    source = {"imported": arguments.file.name, "key": arguments.key, "sha256": sha256}
    checkpoints.save(
        arguments.out,
        info=info,
        model=None,
        ema=denoiser.network.state_dict(),
        optimizer=None,
        config={"network": asdict(info.network)},
        meta={"kind": "base", "data": source, "notes": list(notes)},
    )
    weights = sum(p.numel() for p in denoiser.parameters())
    print(f"{arguments.out}: {env} at {info.resolution}x{info.resolution}, {weights:,} weights, sigma_data {info.sigma_data}")
    for note in notes:
        print(f"  {note}")
    normalizer = info.pde().normalizer
    print(f"  the file does not say its units; taken is {env}'s: scale {normalizer.scale}, shift {normalizer.shift}")


if __name__ == "__main__":
    run_command(main)
