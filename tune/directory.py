"""A sweep's directory: sweep.json (what it is), study.db (its trials), trials/NUMBER (their runs), test.json, the report."""

import uuid
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from pirf_ray.checkpoints import CheckpointError, load_meta, read_json, write_json
from pirf_ray.cli import changed_flags, check_env, choose
from pirf_ray.config import ConfigError, TrainConfig
from pirf_ray.presets import PRESETS
from pirf_ray.runs import config_from_json, refuse_existing
from pirf_ray.training import absolute, check, check_named
from tune.goals import Limits
from tune.placement import Placement, choose_mode, place
from tune.search_space import SearchSpace
from tune.settings import Arguments, Space
from tune.studies import SweepStudy, make_sampler, open_study, run_name

SETTINGS = "sweep.json"
DEFAULT_TRIALS = 20
FROM_COMMAND = ("resume", "out", "num_trials", "storage", "address")
"""What a sweep has from the command line alone; the rest it has in sweep.json."""
CHANGEABLE = (*FROM_COMMAND, "at_once", "test")
"""What can be given to a resumed sweep."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A checked sweep, ready to run."""

    root: Path
    arguments: Arguments
    config: TrainConfig
    space: SearchSpace
    base: Path
    identity: str
    total: int

    @property
    def trials(self) -> Path:
        return self.root / "trials"

    def run(self, number: int) -> Path:
        return self.trials / run_name(number)

    @property
    def limits(self) -> Limits:
        return Limits(guard=self.config.guard, residual=self.arguments.residual_limit)

    def study(self, storage: str | None = None) -> SweepStudy:
        """Open its study: in ``storage``, by default the command's or the directory's own."""
        a = self.arguments
        name = a.study or f"{self.config.env.removesuffix('-v0')}-{a.preset}-{a.goal}"
        storage = storage or a.storage or f"sqlite:///{self.root / 'study.db'}"
        about = {"env": self.config.env, "preset": a.preset, "regularizer": self.space.regularizer}
        study = open_study(storage, name, a.goal, about)
        study.sampler = make_sampler(study, a.seed)
        return SweepStudy(study, self.space, sweep=self.identity, goal=a.goal, limits=self.limits)


def created(arguments: Arguments) -> Sweep:
    """A new sweep directory, everything checked first."""
    env = check_env(arguments.env)
    settings: dict[str, int] = {"samples": arguments.samples, "real": arguments.real}
    if arguments.base is not None:
        settings["resolution"] = load_meta(arguments.base)[0].resolution
    config = choose("preset", arguments.preset, PRESETS)(env).with_settings(**settings)
    base = absolute(check(config, base=arguments.base, data=None))
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
    from pirf_ray.distributed import driver  # Ray takes seconds to import, and bad input must be told before

    if arguments.address:
        driver.check_answers(arguments.address)
    else:
        placed(sweep, [driver.local_resources()])
    sweep.trials.mkdir(parents=True)
    save(sweep)
    return sweep


def save(sweep: Sweep) -> None:
    """The storage's address stays out of it: it may hold a password."""
    settings = {k: v for k, v in asdict(sweep.arguments).items() if k not in FROM_COMMAND}
    settings["base"] = str(sweep.base)
    stored = {"identity": sweep.identity, "total": sweep.total, "config": sweep.config.to_json(), "arguments": settings}
    write_json(sweep.root / SETTINGS, {**stored, "own_storage": sweep.arguments.storage is None, "space": sweep.space.texts()})


def resumed(arguments: Arguments) -> Sweep:
    """An existing sweep; ConfigError if flags try to change what it is."""
    root = absolute(arguments.resume or Path())
    mine = {f"--{name.replace('_', '-')}" for name in CHANGEABLE if name != "out"}
    changing = [flag for flag in changed_flags(arguments, Arguments(env=arguments.env)) if flag not in mine]
    if changing:
        raise ConfigError(f"--resume goes on with a sweep as it is: {', '.join(changing)} cannot be given with it")
    sweep = load(root)
    check_named([sweep.config.pirf.objective, *sweep.arguments.space.vary.get("objective", "").split(",")], root / SETTINGS)
    if arguments.env not in (Arguments().env, sweep.config.env):
        raise ConfigError(f"--resume {root}: a sweep of {sweep.config.env}, not of --env {arguments.env}")
    if not read_json(root / SETTINGS)["own_storage"] and arguments.storage is None:
        raise ConfigError(f"--resume {root}: its study lies in a storage of yours; give its --storage again")
    given = {name: getattr(arguments, name) for name in CHANGEABLE if getattr(arguments, name) != getattr(Arguments(), name)}
    sweep = replace(sweep, arguments=replace(sweep.arguments, **given), total=arguments.num_trials or sweep.total)
    save(sweep)
    return sweep


def load(root: Path) -> Sweep:
    """Read a sweep directory; CheckpointError if it is none."""
    stored = read_json(root / SETTINGS)
    try:
        settings = stored["arguments"]
        base = Path(settings["base"])
        arguments = Arguments(**{**settings, "base": base, "space": Space(**settings["space"])})
        config = config_from_json(stored["config"])
        identity, total = str(stored["identity"]), int(stored["total"])
    except (TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{root / SETTINGS}: not a sweep's settings ({error})") from None
    space = make_space(arguments, config, base)
    return Sweep(root=root, arguments=arguments, config=config, space=space, base=base, identity=identity, total=total)


def make_space(arguments: Arguments, config: TrainConfig, base: Path) -> SearchSpace:
    narrowed = {k: v for k, v in asdict(arguments.space).items() if k != "vary"}
    levels = len(load_meta(base)[0].network.channel_mult)
    return SearchSpace.around(
        config, decoder_levels=levels, regularizer=arguments.regularizer, narrowed=narrowed, varied=arguments.space.vary
    )


def placed(sweep: Sweep, nodes: list[dict[str, float]]) -> Placement:
    a = sweep.arguments
    mode = choose_mode(a.mode, sweep.config)
    return place(
        sweep.config, mode, nodes, cpus=a.trial_cpus, gpus=a.trial_gpus, at_most=min(sweep.total, a.at_once or sweep.total)
    )
