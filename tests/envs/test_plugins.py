"""PDEs from outside the package: entry points, and modules named in the environment."""

import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from envs import plugins
from envs.common.registry import VARIABLE


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module on the Python path that is not imported yet."""
    (tmp_path / "plugin_of_a_test.py").write_text("LOADED = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plugin_of_a_test", raising=False)
    return "plugin_of_a_test"


def entry_points(*values: str) -> object:
    return lambda group: [EntryPoint(name="heat", value=value, group=group) for value in values]


def test_an_entry_point_names_a_module_with_or_without_a_part_of_it(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(plugins, "entry_points", entry_points(f"{module}:LOADED"))
    plugins.load_plugins()
    assert sys.modules[module].LOADED


def test_the_environment_variable_names_modules(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugins, "entry_points", entry_points())
    monkeypatch.setenv(VARIABLE, f"{module},")
    plugins.load_plugins()
    assert module in sys.modules


@pytest.mark.parametrize(
    ("points", "variable", "message"),
    [
        (("nowhere_at_all",), "", r"entry point 'heat' of group pirf_ray.pdes: no module 'nowhere_at_all'"),
        ((), "nowhere_at_all", f"{VARIABLE}: no module 'nowhere_at_all'"),
    ],
)
def test_a_module_that_does_not_exist_is_named_with_its_source(
    points: tuple[str, ...], variable: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugins, "entry_points", entry_points(*points))
    monkeypatch.setenv(VARIABLE, variable)
    with pytest.raises(ValueError, match=message):
        plugins.load_plugins()
