"""The search space of a sweep: typed, printable, narrowed on the command line by specs of single parameters."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints

import optuna

from envs.common.checks import ConfigError, flag
from envs.common.search import Spec, Value, parse_spec
from pirf_ray.comparison.tuning import suggest
from pirf_ray.training.settings import TrainConfig

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
"""The parameters that every sweep has, and their types."""
DISPLAYED = {
    "truncation": "K, last steps that carry gradient",
    "regularization": "strength of {regularizer}",
    "learning_rate": "of Adam at the first update",
    "num_steps": "N, steps of the sampler",
    "levels": "top decoder levels that learn; 0: all layers",
    "layer_mode": "of the layers below them, if levels > 0",
    "reuse": "M, updates that a prefix serves{pool}",
}
NOT_VARIED = ("env", "resolution", "weights", "regularizers")
"""Settings that a sweep cannot vary: the base model decides the first two, and the others are no single values."""
YES_OR_NO = {"true": True, "false": False}
"""Values of a setting that is a yes or no, by their texts."""


@dataclass(frozen=True)
class SearchSpace:
    """Specs by parameter, around the run that ``config`` is.

    ``regularizer``: the setting that ``regularization`` stands for, anchor or l2. A pool draws prefixes at random, so
    ``reuse`` M is a mean there: batch / M prefixes are added per update.
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
        """Return the default space of a preset, with the texts of ``narrowed`` in place of its own and ``varied`` settings added.

        ConfigError names the flag of a text that is no spec, of a setting that does not exist and of values that do not go
        together.
        """
        regularizer = regularizer or ("anchor" if flat(config).get("anchor") else "l2")
        if regularizer not in flat(config):
            known = ", ".join(config.regularizers) or "none"
            raise ConfigError(f"--regularizer {regularizer}: this run has other regularizers ({known})")
        texts = {**default_texts(config, decoder_levels, regularizer), **{k: v for k, v in (narrowed or {}).items() if v}}
        specs: dict[str, Spec] = {name: parse_spec(name, text, KINDS[name]) for name, text in texts.items()}
        kinds = setting_kinds(config)
        for given, text in (varied or {}).items():
            name = given.replace("-", "_")
            if name in KINDS or name in (regularizer, "pool_growth"):
                own = {regularizer: "regularization", "pool_growth": "reuse"}.get(name, name)
                raise ConfigError(f"--vary {given}: this is {flag(own)}")
            if name not in kinds:
                raise ConfigError(f"--vary {given}: no setting of a run; known: {', '.join(sorted(kinds))}")
            specs[name] = parse_spec(f"vary {given}", text, kinds[name])
        space = cls(config, specs, regularizer)
        space._check(decoder_levels)
        return space

    def _check(self, decoder_levels: int) -> None:
        """Raise ConfigError unless every combination of ends makes a run."""
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
        """Return the values of one trial. The layer mode is asked for only if levels are cut."""
        params: Params = {name: suggest(trial, name, spec) for name, spec in self.specs.items() if name != "layer_mode"}
        if params["levels"]:
            params["layer_mode"] = suggest(trial, "layer_mode", self.specs["layer_mode"])
        return params

    def run_config(self, params: Mapping[str, Value]) -> TrainConfig:
        """Return the run that the values make of ``config``."""
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
        return self.config.with_settings(**self._typed(settings))

    def _typed(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Return the settings with the texts of a yes or no as such. ConfigError names a setting with another text."""
        own, typed = flat(self.config), dict(settings)
        for name in (name for name in settings if isinstance(own.get(name), bool)):
            text = str(settings[name]).lower()
            if text not in YES_OR_NO:
                raise ConfigError(f"--vary {name}: expected true or false, got {settings[name]!r}")
            typed[name] = YES_OR_NO[text]
        return typed

    def preset(self) -> Params:
        """Return the values of the first trial: the preset's own, as far as the space searches and holds them."""
        settings = flat(self.config) | {"reuse": uses_of(self.config)}
        settings["regularization"] = settings[self.regularizer]
        if not settings["levels"]:
            del settings["layer_mode"]
        settings |= {name: str(value).lower() for name, value in settings.items() if isinstance(value, bool)}
        searched = {name: spec for name, spec in self.specs.items() if name in settings and not spec.fixed}
        return {name: settings[name] for name, spec in searched.items() if spec.holds(settings[name])}

    def outside(self) -> list[str]:
        """Return the searched parameters whose space does not hold the preset's value."""
        known = self.preset().keys() | (set() if flat(self.config)["levels"] else {"layer_mode"})
        return [name for name, spec in self.specs.items() if name not in known and not spec.fixed]

    def searched(self) -> list[str]:
        """Return the parameters that are searched: the others are fixed."""
        return [name for name, spec in self.specs.items() if not spec.fixed]

    def texts(self) -> dict[str, str]:
        """Return the text of each spec, as the command line takes it."""
        return {name: str(spec) for name, spec in self.specs.items()}

    def __str__(self) -> str:
        """Return a line per parameter: its name, its spec, its meaning."""
        pool = ", on average" if self.config.rollout.strategy == "pool" else ""
        named = {name: text.format(regularizer=self.regularizer, pool=pool) for name, text in DISPLAYED.items()}
        width = max(map(len, self.specs))
        column = max(map(len, self.texts().values()))
        return "\n".join(
            f"{name:{width}}  {text:{column}}  {named.get(name, '')}".rstrip() for name, text in self.texts().items()
        )


def default_texts(config: TrainConfig, decoder_levels: int, regularizer: str) -> dict[str, str]:
    """Return the specs around a preset: wide for truncation and regularization, a factor of a few for the others."""
    k, n, rate = config.truncation_steps, config.sampler.num_steps, config.optimizer.learning_rate
    strength = flat(config)[regularizer]
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
    """Return M, the updates that a prefix serves; in a pool on average."""
    rollout = config.rollout
    if rollout.strategy == "fresh":
        return float(rollout.reuse)
    return config.optimizer.batch / rollout.pool_growth


def flat(config: TrainConfig) -> dict[str, Any]:
    """Return every setting of every group by its name."""
    return {f: getattr(group, f) for group in _groups(config) for f in _settings(group)}


def setting_kinds(config: TrainConfig) -> dict[str, type]:
    """Return the settings that can be varied, and their types."""
    kinds: dict[str, type] = {}
    for group in _groups(config):
        hints = get_type_hints(type(group))
        kinds |= {name: hints[name] if hints[name] in (int, float) else str for name in _settings(group)}
    return {name: kind for name, kind in kinds.items() if name not in NOT_VARIED}


def _groups(config: TrainConfig) -> list[Any]:
    """Return the config itself, for the settings that have no group, and every group."""
    return [config, *(value for value in vars(config).values() if is_dataclass(value))]


def _settings(group: Any) -> list[str]:
    return [f.name for f in fields(group) if not is_dataclass(getattr(group, f.name))]
