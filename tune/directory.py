"""The directory of a sweep: sweep.json (its settings), study.db (its trials), trials/NUMBER (their runs), test.json, the report."""

import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from envs.common.checks import ConfigError, flag
from envs.common.files import absolute, read_json, refuse_existing, write_json
from envs.common.registry import VARIABLE, choose, named_modules
from envs.pdes.base import require
from pirf_ray.cli.flags import changed_flags, check_env
from pirf_ray.diffusion.checkpoints import CheckpointError, load_meta
from pirf_ray.training.checks import check, check_named
from pirf_ray.training.presets import PRESETS
from pirf_ray.training.settings import CHOICES, TrainConfig, named_parts
from tune.goals import Limits
from tune.search_space import SearchSpace
from tune.settings import Arguments, Space
from tune.studies import SweepStudy, make_sampler, open_study, run_name

SETTINGS = "sweep.json"
DEFAULT_TRIALS = 20
FROM_COMMAND = ("resume", "out", "num_trials", "storage", "address")
"""Arguments that only the command line holds. sweep.json holds the others."""
CHANGEABLE = (*FROM_COMMAND, "at_once", "test")
"""Arguments that a resumed sweep takes."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked sweep, ready to run."""

    root: Path
    """Directory of the sweep."""
    arguments: Arguments
    """Flags of the command, and of the command that created the sweep."""
    config: TrainConfig
    """The run around which the sweep searches."""
    space: SearchSpace
    """The search space."""
    base: Path
    """Directory of the base model."""
    identity: str
    """Name that the sweep's trials carry in a study that several sweeps share."""
    total: int
    """Trials in all."""

    @property
    def trials(self) -> Path:
        """Return the directory of the trials' runs."""
        return self.root / "trials"

    def run(self, number: int) -> Path:
        """Return the run directory of a trial."""
        return self.trials / run_name(number)

    @property
    def limits(self) -> Limits:
        """Return the limits of the constraints."""
        return Limits(guard=self.config.guard, residual=self.arguments.residual_limit)

    @property
    def last_update(self) -> int:
        """Return the largest number of updates of a trial."""
        spec = self.space.specs.get("updates")
        return max(int(n) for n in spec.ends()) if spec else self.config.optimizer.updates

    @property
    def resume_command(self) -> str:
        """Return the command that continues the sweep; it names the user's own modules again."""
        modules = ",".join(named_modules())
        return (f"{VARIABLE}={modules} " if modules else "") + f"python -m tune.sweep --resume {self.root}"

    def study(self, storage: str | None = None) -> SweepStudy:
        """Open the study in ``storage``, by default in the command's storage or in the directory."""
        a = self.arguments
        name = a.study or f"{self.config.env.removesuffix('-v0')}-{a.preset}-{a.goal}"
        storage = storage or a.storage or f"sqlite:///{self.root / 'study.db'}"
        about = {"env": self.config.env, "preset": a.preset, "regularizer": self.space.regularizer}
        study = open_study(storage, name, a.goal, about)
        study.sampler = make_sampler(study, a.seed)
        return SweepStudy(study, self.space, sweep=self.identity, goal=a.goal, limits=self.limits)


def created(arguments: Arguments) -> Sweep:
    """Check everything, then create the directory of a new sweep."""
    env = check_env(arguments.env)
    settings: dict[str, int] = {"samples": arguments.samples, "real": arguments.real}
    if arguments.base is not None:
        settings["resolution"] = load_meta(arguments.base)[0].resolution
    config = choose("preset", arguments.preset, PRESETS)(env).with_settings(**settings)
    base = absolute(check(config, base=arguments.base, data=None))
    require(load_meta(base)[0].pde(), "operators", "a sweep, whose goals compare residuals,")
    sweep = Sweep(
        root=absolute(arguments.out or Path("sweeps") / f"{env}-{datetime.now():%Y%m%d-%H%M%S}"),
        arguments=replace(arguments, env=env),
        config=config,
        space=make_space(arguments, config, base),
        base=base,
        identity=uuid.uuid4().hex,
        total=arguments.num_trials or DEFAULT_TRIALS,
    )
    refuse_existing(sweep.root)
    _check_room(sweep)
    sweep.trials.mkdir(parents=True)
    save(sweep)
    return sweep


def _varied_parts(vary: Mapping[str, str]) -> list[str]:
    """Return the names of parts among the values of varied settings, which no check has seen yet."""
    return [name.strip() for setting, text in vary.items() if setting.replace("-", "_") in CHOICES for name in text.split(",")]


def _check_room(sweep: Sweep) -> None:
    """Check that the cluster answers, or that this machine, on which Ray is not yet started, has room for a trial."""
    from pirf_ray.distributed import cluster  # Ray takes seconds to import, and bad flags come first
    from tune.placement import place_trials

    if sweep.arguments.address:
        cluster.check_answers(sweep.arguments.address)
    else:
        place_trials(sweep, cluster.local_resources())


def save(sweep: Sweep) -> None:
    """Write sweep.json. The storage's address stays out of it: it may hold a password."""
    settings = {k: v for k, v in asdict(sweep.arguments).items() if k not in FROM_COMMAND}
    settings["base"] = str(sweep.base)
    stored = {"identity": sweep.identity, "total": sweep.total, "config": sweep.config.to_json(), "arguments": settings}
    write_json(sweep.root / SETTINGS, {**stored, "own_storage": sweep.arguments.storage is None, "space": sweep.space.texts()})


def resumed(arguments: Arguments) -> Sweep:
    """Return an existing sweep; ConfigError if flags try to change what it is."""
    root = absolute(arguments.resume or Path())
    allowed = {flag(name) for name in CHANGEABLE if name != "out"}
    changing = [name for name in changed_flags(arguments, Arguments(env=arguments.env)) if name not in allowed]
    if changing:
        raise ConfigError(f"--resume continues a sweep as it is: {', '.join(changing)} cannot be given with it")
    sweep = load(root)
    if arguments.env not in (Arguments().env, sweep.config.env):
        raise ConfigError(f"--resume {root}: the sweep is of {sweep.config.env}, not of --env {arguments.env}")
    if not read_json(root / SETTINGS)["own_storage"] and arguments.storage is None:
        raise ConfigError(f"--resume {root}: its study is in a storage of your own; give its --storage again")
    given = {name: getattr(arguments, name) for name in CHANGEABLE if getattr(arguments, name) != getattr(Arguments(), name)}
    sweep = replace(sweep, arguments=replace(sweep.arguments, **given), total=arguments.num_trials or sweep.total)
    save(sweep)
    return sweep


def load(root: Path) -> Sweep:
    """Read the directory of a sweep; CheckpointError or FileFormatError if it is none."""
    stored = read_json(root / SETTINGS)
    try:
        settings = stored["arguments"]
        base = Path(settings["base"])
        arguments = Arguments(**{**settings, "base": base, "space": Space(**settings["space"])})
        check_named([*named_parts(stored["config"]), *_varied_parts(arguments.space.vary)], root / SETTINGS)
        config = TrainConfig.from_json(stored["config"])
        identity, total = str(stored["identity"]), int(stored["total"])
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{root / SETTINGS}: not a sweep's settings ({error})") from None
    space = make_space(arguments, config, base)
    return Sweep(root=root, arguments=arguments, config=config, space=space, base=base, identity=identity, total=total)


def make_space(arguments: Arguments, config: TrainConfig, base: Path) -> SearchSpace:
    """Return the search space around a run, narrowed by the arguments."""
    narrowed = {k: v for k, v in asdict(arguments.space).items() if k != "vary"}
    levels = len(load_meta(base)[0].network.channel_mult)
    return SearchSpace.around(
        config, decoder_levels=levels, regularizer=arguments.regularizer, narrowed=narrowed, varied=arguments.space.vary
    )
