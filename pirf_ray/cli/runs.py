"""Flags of ``train``, and the run that they mean: a new one, or one to continue."""

import shlex
import sys
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from envs.common.checks import ConfigError, flag
from envs.common.files import absolute, refuse_existing
from envs.common.registry import choose
from envs.pdes import REGISTRY
from pirf_ray.cli.flags import DEFAULT_ENV, changed_flags, flag_value, flag_values, named_env, parse, use_address
from pirf_ray.methods.running import recipe_settings
from pirf_ray.training.checks import check
from pirf_ray.training.presets import DEFAULT_PRESET, PRESETS
from pirf_ray.training.runs import RunDirectory, load_settings
from pirf_ray.training.settings import CHOICES, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TrainArguments:
    """Fine-tune a diffusion model of physical fields so that what it generates obeys the PDE.

    Without further flags: the shipped base model, Ray on this machine, a few minutes, a run directory with report.png.
    """

    preset: str = DEFAULT_PRESET
    """smoke (seconds), small (minutes on two cores) or paper (128x128 on a GPU); sets the defaults of all other flags."""
    method: str = ""
    """Published method whose recipe sets the defaults of the other flags, over the preset's (--list method); your own: module:name."""
    settings: Path | None = None
    """config.json of another run (or of an exported trial), whose settings are the defaults in place of a preset's."""
    out: Path | None = None
    """Run directory to make; default: runs/<env>-<date>-<time>."""
    resume: Path | None = None
    """Continue this run directory instead, with its own settings."""
    base: Path | None = None
    """Base model to fine-tune; default: the one that ships with the package."""
    data: Path | None = None
    """HDF5 file of held-out fields for the final evaluation; default: they are solved."""
    list: str | None = None
    """Print the registered parts of a kind, one line each, and end: objective, reward, credit, parameters, method, ..."""
    address: str | None = None
    """Ray cluster to join (or RAY_ADDRESS); default: start Ray on this machine."""
    config: TrainConfig = field(default_factory=TrainConfig)


@dataclass(frozen=True, kw_only=True)
class ParsedTrain:
    """The flags of ``train``, beside what they would be by default."""

    arguments: TrainArguments
    default: TrainArguments
    parts: dict[str, Any]
    """Parts that the command line names, by their settings."""

    @property
    def named(self) -> tuple[str, ...]:
        """Return the names of these parts."""
        return tuple(name for value in self.parts.values() for name in (value if isinstance(value, tuple) else (value,)))


def parse_train(argv: list[str] | None) -> ParsedTrain:
    """Parse the flags of ``train``. The preset with a method's recipe, or the settings file, sets the other flags' defaults."""
    argv = list(sys.argv[1:] if argv is None else argv)
    path = flag_value(argv, "--settings", "")
    chosen = {part: flag_values(argv, f"--{part}") for part in CHOICES}
    settings = load_settings(Path(path), [name for names in chosen.values() for name in names]) if path else None
    env, argv = named_env(argv, settings.env if settings else DEFAULT_ENV)
    preset = flag_value(argv, "--preset", DEFAULT_PRESET)
    config = settings or choose("preset", preset, PRESETS)(env)
    method = flag_value(argv, "--method", "")
    if method:
        config = config.with_settings(**recipe_settings(method))
    parts = {part: names if part == "regularizers" else names[0] for part, names in chosen.items() if names}
    default = TrainArguments(preset=preset, method=method, config=config.with_settings(**parts))
    arguments = parse(
        TrainArguments, argv=argv, prog="python -m pirf_ray.train", description=TrainArguments.__doc__, default=default
    )
    arguments = replace(arguments, address=use_address(arguments.address))
    return ParsedTrain(arguments=arguments, default=default, parts=parts)


def open_run(parsed: ParsedTrain) -> RunDirectory:
    """Return the run that the flags mean, everything checked first."""
    return _resumed(parsed) if parsed.arguments.resume is not None else _created(parsed.arguments)


def _created(arguments: TrainArguments) -> RunDirectory:
    config = arguments.config
    if arguments.settings is not None and "--preset" in changed_flags(arguments, TrainArguments()):
        raise ConfigError("--settings stands in place of a preset: --preset cannot be given with it")
    if arguments.settings is not None and arguments.method:
        raise ConfigError("--settings holds every setting of a run: --method cannot be given with it")
    base = check(config, base=arguments.base, data=arguments.data)
    root = absolute(arguments.out or Path("runs") / f"{config.env}-{datetime.now():%Y%m%d-%H%M%S}")
    refuse_existing(root)
    _check_resources(arguments)
    return RunDirectory.create(root, config, base)


def _resumed(parsed: ParsedTrain) -> RunDirectory:
    """Return an existing run; ConfigError if flags try to change what it is."""
    arguments = parsed.arguments
    fixed = (arguments.out, arguments.base, arguments.settings, arguments.method or None)
    if arguments.resume is None or any(value is not None for value in fixed):
        raise ConfigError("--resume continues a run as it is: --out, --base, --settings and --method cannot be given with it")
    run = RunDirectory.open(absolute(arguments.resume), parsed.named)
    asked = [name for name in changed_flags(arguments.config, parsed.default.config) if name != "--env"]
    differing = [flag(part) for part, name in parsed.parts.items() if name != getattr(run.config, part)]
    differing += [name for name in asked if name in changed_flags(arguments.config, run.config)]
    if differing:
        raise ConfigError(f"--resume continues a run with its own settings; {', '.join(differing)} would change them")
    return run


def _check_resources(arguments: TrainArguments) -> None:
    """Check the room of the cluster, which is joined for it, or of this machine, on which Ray is not yet started."""
    from pirf_ray.distributed import cluster  # Ray takes seconds to import, and bad input must be told before

    if arguments.address:
        cluster.connect(arguments.config, arguments.address)
    else:
        cluster.check_run(arguments.config, cluster.local_resources())


def resume_command(run: RunDirectory) -> str:
    """Return the command that continues a run; it names the user's own modules again."""
    module = REGISTRY[run.config.env].__module__
    env = run.config.env if module.startswith("envs.pdes.") else f"{module}:{run.config.env}"
    parts = {part: getattr(run.config, part) for part in CHOICES}
    own = {
        part: " ".join(name) if isinstance(name, tuple) else shlex.quote(name) for part, name in parts.items() if ":" in str(name)
    }
    named = "".join(f" --{part} {name}" for part, name in own.items())
    return f"python -m pirf_ray.train --env {env} --resume {run.paths.root}{named}"
