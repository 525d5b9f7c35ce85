"""Parts of a training by name: their settings, their flags, their names, users' own."""

import dataclasses
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from envs.common.parts import PartRegistry, PartSettings, merged_settings, settings_of
from envs.common.registry import VARIABLE
from envs.rewards import REWARDS
from pirf_ray.learning.credit import CREDITS
from pirf_ray.learning.objectives import OBJECTIVES
from pirf_ray.learning.parameters import PARAMETERS
from pirf_ray.learning.regularizers import REGULARIZERS
from pirf_ray.learning.rollouts import MAKERS
from pirf_ray.training.settings import CHOICES, TrainConfig
from registries import restored
from tiny_models import tiny_config

REGISTRIES: dict[str, PartRegistry[Any]] = {
    "reward": REWARDS,
    "objective": OBJECTIVES,
    "maker": MAKERS,
    "credit": CREDITS,
    "parameters": PARAMETERS,
    "regularizers": REGULARIZERS,
}
"""Registries by the setting that names their parts."""
PARTS = [(choice, name) for choice, registry in REGISTRIES.items() for name in registry]


def test_every_choice_of_a_training_has_its_registry() -> None:
    assert tuple(REGISTRIES) == CHOICES
    assert all(registry.flag == choice for choice, registry in REGISTRIES.items())


@pytest.mark.parametrize(("choice", "name"), PARTS)
def test_a_part_says_what_it_is_in_one_line(choice: str, name: str) -> None:
    """The line of ``--list``."""
    (line,) = [line for line in REGISTRIES[choice].describe() if line.split("  ")[0].strip() == name]
    text = line.partition("  ")[2].strip()
    assert len(text.split()) >= 2 and text.endswith(".")


@pytest.mark.parametrize(("choice", "name"), PARTS)
def test_every_setting_is_frozen_documented_and_plain(choice: str, name: str) -> None:
    """Settings are flags and JSON: each has a default, a type and a docstring below it."""
    kind = settings_of(REGISTRIES[choice][name])
    assert issubclass(kind, PartSettings)
    made = kind()
    assert kind(**made.to_json()) == made == dataclasses.replace(made)
    hints = get_type_hints(kind)
    for f in dataclasses.fields(kind):
        owner = next(cls for cls in kind.__mro__ if f.name in vars(cls).get("__annotations__", {}))
        source = inspect.getsource(owner)
        after = source[source.index(f"{f.name}:") :].splitlines()[1].strip()
        assert after.startswith('"""'), f"{owner.__name__}.{f.name} has no docstring"
        assert hints[f.name] in (bool, int, float, str) or not isinstance(hints[f.name], type), f.name
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(made, f.name, getattr(made, f.name))


def own_names(config: TrainConfig) -> Iterator[str]:
    """Yield the names of all settings of all groups."""
    for group in dataclasses.fields(config):
        value = getattr(config, group.name)
        yield from ([f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else [group.name])


@pytest.mark.parametrize(("choice", "name"), PARTS)
def test_no_setting_of_a_part_has_the_name_of_another_setting(choice: str, name: str) -> None:
    """Settings are known by their names alone, whatever their group."""
    value = (name,) if choice == "regularizers" else name
    own: dict[str, Any] = {"strategy": "fresh", "group": 2, "solver": "stochastic", "scope": "all", choice: value}
    if choice == "maker":
        own["objective"] = next(objective for objective, cls in OBJECTIVES.items() if name in cls.makers)
    names = list(own_names(tiny_config(**own)))
    assert sorted(set(names)) == sorted(names)


def test_all_regularizers_go_together() -> None:
    merged = merged_settings(REGULARIZERS.values())
    alone = [f.name for cls in REGULARIZERS.values() for f in dataclasses.fields(settings_of(cls))]
    assert sorted(f.name for f in dataclasses.fields(merged)) == sorted(alone)
    config = TrainConfig().with_settings(regularizers=tuple(REGULARIZERS))
    assert type(config.regularizers_settings) is merged


@pytest.mark.parametrize("choice", REGISTRIES)
def test_an_unknown_name_is_answered_with_the_known_ones(choice: str) -> None:
    registry = REGISTRIES[choice]
    with pytest.raises(ValueError, match=rf"--{choice}: unknown {registry.kind} 'nothing'; known: ") as told:
        TrainConfig().with_settings(**{choice: ("nothing",) if choice == "regularizers" else "nothing"})
    assert all(name in str(told.value) for name in registry) and "\n" not in str(told.value)


OWN = """
from dataclasses import dataclass
from envs.common.parts import PartSettings
from {module} import {registry}

@dataclass(frozen=True, kw_only=True)
class MineSettings(PartSettings):
    "Settings of mine."
    mine: float = 2.0
    "How much of mine."

@{registry}.register("mine")
class Mine({registry}["{name}"]):
    "A part of a user."
    Settings = MineSettings
"""
PARENTS = {
    "reward": ("envs.rewards", "REWARDS", "physics"),
    "objective": ("pirf_ray.learning.objectives", "OBJECTIVES", "pathwise"),
    "maker": ("pirf_ray.learning.rollouts", "MAKERS", "prefixes"),
    "credit": ("pirf_ray.learning.credit", "CREDITS", "none"),
    "parameters": ("pirf_ray.learning.parameters", "PARAMETERS", "layers"),
    "regularizers": ("pirf_ray.learning.regularizers", "REGULARIZERS", "l2"),
}
"""Module, registry and name of the part from which a user's own part inherits."""


@pytest.mark.parametrize("choice", REGISTRIES)
def test_a_users_own_part_is_named_by_its_module_and_brings_its_settings(
    choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restored(REGISTRIES[choice], monkeypatch)
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.syspath_prepend(str(tmp_path))
    module, variable, parent = PARENTS[choice]
    (tmp_path / f"mine_{choice}.py").write_text(OWN.format(module=module, registry=variable, name=parent))
    name = f"mine_{choice}:mine"
    config = tiny_config(**{choice: (name,) if choice == "regularizers" else name})
    changed = config.with_settings(mine=3.5)
    assert getattr(config, f"{choice}_settings").mine == 2.0 and getattr(changed, f"{choice}_settings").mine == 3.5
    assert TrainConfig.from_json(changed.to_json()) == changed
