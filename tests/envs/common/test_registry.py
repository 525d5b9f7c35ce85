"""The registry: names, owners, and users' own modules."""

import os
import sys
from pathlib import Path

import pytest

from envs.common.registry import VARIABLE, Registry, choose, import_user_module, imported_name, named_modules, unknown


class Round:
    size = 1


class Square:
    size = 4


@pytest.fixture
def shapes() -> Registry[type]:
    shapes = Registry[type]("shape")
    shapes.register("round")(Round)
    shapes.register("square")(Square)
    return shapes


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module. The variable of the modules and the path are restored after the test."""
    (tmp_path / "user_module_of_a_test.py").write_text(
        "import sys\nsys.modules['tests_shapes'].register('oval')(type('Oval', (), {}))\n"
    )
    (tmp_path / "broken_module_of_a_test.py").write_text("import nowhere_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(VARIABLE, "")
    monkeypatch.delitem(sys.modules, "user_module_of_a_test", raising=False)
    return "user_module_of_a_test"


def test_parts_are_found_by_name_in_the_order_of_registration(shapes: Registry[type]) -> None:
    assert shapes.find("square") is shapes["square"] is Square
    assert list(shapes) == ["round", "square"] and len(shapes) == 2 and "oval" not in shapes


def test_a_registry_can_make_its_parts_of_the_classes() -> None:
    sizes = Registry[int]("size", make=lambda cls: cls.size)
    assert sizes.register("square")(Square) is Square
    assert sizes["square"] == 4


def test_unknown_names_are_answered_with_the_flag_and_the_known_names(shapes: Registry[type]) -> None:
    with pytest.raises(ValueError, match="^--shape: unknown shape 'oval'; known: round, square$"):
        shapes.find("oval")
    with pytest.raises(ValueError, match="^--method: unknown shape 'oval'; known: $"):
        Registry[type]("shape", flag="method").find("oval")
    assert unknown("shape", "oval", {"b": 1, "a": 2}) == "unknown shape 'oval'; known: a, b"
    assert choose("shape", "a", {"a": 2}) == 2
    with pytest.raises(ValueError, match="^--shape: unknown shape 'oval'; known: a$"):
        choose("shape", "oval", {"a": 2})


def test_a_name_belongs_to_one_class_which_may_be_loaded_again(shapes: Registry[type]) -> None:
    with pytest.raises(ValueError, match=r"shape 'round' of .*Square is taken by .*Round"):
        shapes.register("round")(Square)
    assert shapes["round"] is Round
    again = type("Round", (), {"__module__": Round.__module__, "__qualname__": Round.__qualname__})
    shapes.register("round")(again)
    assert shapes["round"] is again


def test_a_value_that_is_no_class_belongs_to_its_module() -> None:
    sizes = Registry[int]("size")
    assert sizes.add("square", 4, owner="here") == sizes["square"] == 4
    assert sizes.add("square", 5, owner="here") == sizes.find("square") == 5
    with pytest.raises(ValueError, match="^size 'square' of there is taken by here$"):
        sizes.add("square", 4, owner="there")
    assert sizes["square"] == 5


def test_parts_are_described_by_their_line_or_their_docstring(shapes: Registry[type]) -> None:
    shapes.register("oval")(type("Oval", (), {"__doc__": "An oval.\n\nMore of it."}))
    shapes.register("star")(type("Star", (), {"line": "five points"}))
    assert shapes.describe() == ["round   ", "square  ", "oval    An oval.", "star    five points"]


def test_a_users_module_is_imported_here_and_named_for_other_processes(
    module: str, shapes: Registry[type], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tests_shapes", shapes)
    assert shapes.find(f"{module}:oval").__name__ == "Oval"
    assert named_modules() == [module]
    assert imported_name(f"{module}:oval", "shape") == "oval"
    assert os.environ[VARIABLE] == module  # named once
    assert imported_name("plain", "shape") == "plain"


def test_a_module_that_does_not_exist_is_named_with_its_flag(module: str, shapes: Registry[type]) -> None:
    with pytest.raises(ValueError, match=r"^--shape nowhere_at_all:\.\.\.: no module 'nowhere_at_all' in this directory"):
        shapes.find("nowhere_at_all:oval")
    with pytest.raises(ValueError, match=r"no module 'envs.nowhere'"):
        import_user_module("envs.nowhere", "here")
    assert named_modules() == []


def test_an_error_inside_a_users_module_is_not_hidden(module: str) -> None:
    with pytest.raises(ModuleNotFoundError, match="nowhere_at_all"):
        import_user_module("broken_module_of_a_test", "here")
