"""The search space of a sweep: typed, printable, narrowed on the command line by specs of single parameters."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

import optuna

from pirf_ray.config import ConfigError, TrainConfig
from tune.specs import Spec, Value, parse_spec

Params = dict[str, Value]
KINDS: dict[str, type] = {
    "truncation": int,
    "regularization": float,
    "learning_rate": float,
    "num_steps": int,
    "levels": int,
    "layer_mode": str,
    "reuse": float,
}
"""The parameters that every sweep has, and what each is."""
DISPLAYED = {
    "truncation": "K, last steps that carry gradient",
    "regularization": "strength of {regularizer}",
    "learning_rate": "of Adam at the first update",
    "num_steps": "N, steps of the sampler",
    "levels": "top decoder levels that learn; 0: all layers",
    "layer_mode": "below them, where levels > 0",
    "reuse": "M, updates that a prefix serves{pool}",
}


@dataclass(frozen=True)
class SearchSpace:
    """Specs by parameter, around the run that ``config`` is.

    ``regularizer``: the setting that ``regularization`` stands for, anchor or l2. In a pool, where prefixes are drawn at
    random, ``reuse`` M is the mean: batch / M prefixes are added an update.
    """

    config: TrainConfig
    specs: Mapping[str, Spec]
    regularizer: str

    @classmethod
    def around(
        cls,
        config: TrainConfig,
        *,
        decoder_levels: int,
        regularizer: str = "",
        narrowed: Mapping[str, str] | None = None,
        varied: Mapping[str, str] | None = None,
    ) -> "SearchSpace":
        """The default space of a preset, with the texts of ``narrowed`` in place of its own and the settings ``varied`` added.

        ConfigError, naming the flag, on a text that is no spec, on a setting that does not exist and on values that cannot
        go together.
        """
        regularizer = regularizer or ("anchor" if config.regularization.anchor > 0 else "l2")
        texts = {**default_texts(config, decoder_levels, regularizer), **{k: v for k, v in (narrowed or {}).items() if v}}
        specs: dict[str, Spec] = {name: parse_spec(name, text, KINDS[name]) for name, text in texts.items()}
        kinds = setting_kinds(config)
        for given, text in (varied or {}).items():
            name = given.replace("-", "_")
            if name in KINDS or name in (regularizer, "pool_growth"):
                flag = {regularizer: "regularization", "pool_growth": "reuse"}.get(name, name)
                raise ConfigError(f"--vary {given}: this is --{flag.replace('_', '-')}")
            if name not in kinds:
                raise ConfigError(f"--vary {given}: no setting of a run; known: {', '.join(sorted(kinds))}")
            specs[name] = parse_spec(f"vary {given}", text, kinds[name])
        space = cls(config, specs, regularizer)
        space._check(decoder_levels)
        return space

    def _check(self, decoder_levels: int) -> None:
        """Every combination of ends must make a run."""
        levels = self.specs["levels"].ends()
        if not all(isinstance(n, int) and 0 <= n <= decoder_levels for n in levels):
            raise ConfigError(
                f"--levels must be in [0, {decoder_levels}] (the network's decoder levels), got {self.specs['levels']}"
            )
        names = list(self.specs)
        for values in itertools.product(*(self.specs[name].ends() for name in names)):
            try:
                self.run_config(dict(zip(names, values, strict=True)))
            except ConfigError as error:
                raise ConfigError(f"the search space holds a run that cannot be: {error}") from None

    def suggest(self, trial: optuna.Trial) -> Params:
        """Values of one trial. The layer mode is asked for only where levels are truncated."""
        params: Params = {}
        for name, spec in self.specs.items():
            if name != "layer_mode":
                params[name] = spec.suggest(trial, name)
        if params["levels"]:
            params["layer_mode"] = self.specs["layer_mode"].suggest(trial, "layer_mode")
        return params

    def run_config(self, params: Mapping[str, Value]) -> TrainConfig:
        """The run that the values make of ``config``."""
        settings: dict[str, Any] = dict(params)
        settings[self.regularizer] = settings.pop("regularization")
        uses = settings.pop("reuse")
        rollout = self.config.rollout
        if rollout.strategy == "pool":
            settings["pool_growth"] = settings.get("batch", self.config.optimizer.batch) / uses
        elif uses != int(uses):
            raise ConfigError(f"--reuse must be whole with --strategy fresh, got {uses:g}")
        else:
            settings |= {"reuse": int(uses), "staleness": max(rollout.staleness, int(uses) - 1)}
        return self.config.with_settings(**settings)

    def preset(self) -> Params:
        """The preset's own values, as far as the space searches and holds them: the first trial."""
        c = self.config
        own: Params = {
            "truncation": c.pirf.truncation,
            "regularization": getattr(c.regularization, self.regularizer),
            "learning_rate": c.optimizer.learning_rate,
            "num_steps": c.sampler.num_steps,
            "levels": c.pirf.levels,
            "reuse": uses_of(c),
        }
        if c.pirf.levels:
            own["layer_mode"] = c.pirf.layer_mode
        settings = flat(c)
        own |= {name: settings[name] for name in self.specs if name not in KINDS}
        return {name: value for name, value in own.items() if not self.specs[name].fixed and self.specs[name].holds(value)}

    def outside(self) -> list[str]:
        """Searched or fixed parameters whose space does not hold the preset's value."""
        held = self.preset().keys()
        return [
            name
            for name, spec in self.specs.items()
            if name not in held and not spec.fixed and not (name == "layer_mode" and not self.config.pirf.levels)
        ]

    def texts(self) -> dict[str, str]:
        """What the command line takes, by parameter."""
        return {name: str(spec) for name, spec in self.specs.items()}

    def __str__(self) -> str:
        pool = ", on average" if self.config.rollout.strategy == "pool" else ""
        named = {name: text.format(regularizer=self.regularizer, pool=pool) for name, text in DISPLAYED.items()}
        width = max(map(len, self.specs))
        column = max(len(str(spec)) for spec in self.specs.values())
        return "\n".join(
            f"{name:{width}}  {spec!s:{column}}  {named.get(name, '')}".rstrip() for name, spec in self.specs.items()
        )


def default_texts(config: TrainConfig, decoder_levels: int, regularizer: str) -> dict[str, str]:
    """The space around a preset: truncation and regularization widely, what else decides a run within a factor of a few."""
    k, n, rate = config.pirf.truncation, config.sampler.num_steps, config.optimizer.learning_rate
    strength = getattr(config.regularization, regularizer)
    steps = sorted({max(1, n // 2), n})
    uses = uses_of(config)
    reuses = sorted({uses / 2, uses, 2 * uses} if config.rollout.strategy == "pool" else {1.0, 2.0, 4.0, uses})
    return {
        "truncation": ",".join(str(each) for each in sorted({1, 2, 4, k}) if each <= steps[0]),
        "regularization": f"{strength / 30:g}:{strength * 10:g}" if strength else "1e-4:10",
        "learning_rate": f"{rate / 4:g}:{rate * 4:g}",
        "num_steps": ",".join(map(str, steps)),
        "levels": ",".join(map(str, range(decoder_levels + 1))),
        "layer_mode": "freeze,truncate",
        "reuse": ",".join(f"{each:g}" for each in reuses),
    }


def uses_of(config: TrainConfig) -> float:
    """M: updates that a prefix serves, in a pool on average."""
    rollout = config.rollout
    if rollout.strategy == "fresh":
        return float(rollout.reuse)
    return config.optimizer.batch / rollout.pool_growth


def flat(config: TrainConfig) -> dict[str, Any]:
    """Every setting of every group by its name."""
    settings: dict[str, Any] = {}
    for group in fields(config):
        value = getattr(config, group.name)
        settings |= {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else {group.name: value}
    return settings


def setting_kinds(config: TrainConfig) -> dict[str, type]:
    """The settings that can be varied, and what each is."""
    kinds: dict[str, type] = {"seed": int}
    for group in fields(config):
        value = getattr(config, group.name)
        if is_dataclass(value):
            hints = get_type_hints(type(value))
            kinds |= {
                f.name: hints[f.name] if hints[f.name] in (int, float) else str for f in fields(value) if f.name != "weights"
            }
    return kinds
