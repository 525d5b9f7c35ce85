"""Recipes as values: what is refused, where settings go, who owns a name."""

import pytest

from envs.common.search import Choice, Range
from pirf_ray.methods import METHODS, Recipe, register
from registries import restored

TITLED = {"name": "mine", "title": "mine", "paper": "a paper"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"name": "../base"}, r"method '\.\./base': letters, digits"),
        ({"name": ""}, "method '': letters, digits"),
        ({"steerer": "svdd", "sampler": "policy"}, "a steerer makes a sampler: name one of them"),
        ({"samples_of": "base", "settings": {"objective": "reft"}}, "finishes the samples of 'base' and adds a finisher only"),
        ({"search": {"l2": Range(0.1, 1.0)}}, "the searched setting 'l2' has no value; values: none"),
        (
            {"settings": {"l2": 3.0}, "search": {"l2": Range(0.1, 1.0)}},
            "the value 3.0 of 'l2' is outside its range 0.1:1",
        ),
        ({"sampler_settings": {"scale": 2.0}, "search": {"scale": Choice((1.0, 3.0))}}, "the value 2.0 of 'scale' is outside"),
    ],
)
def test_a_recipe_that_cannot_work_is_refused(fields: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**{**TITLED, **fields})


def test_a_setting_goes_to_the_part_that_has_it_and_else_to_the_training() -> None:
    recipe = Recipe(
        **TITLED,
        settings={"objective": "denoising", "learning_rate": 1e-3},
        sampler="classifier-free",
        sampler_settings={"scale": 1.0},
        search={"scale": Range(0.5, 3.0), "learning_rate": Range(1e-4, 1e-2)},
    )
    assert recipe.trains and list(recipe.defaults.items()) == [("scale", 1.0), ("learning_rate", 1e-3)]
    changed = recipe.with_settings({"scale": 9.0, "learning_rate": 2.0, "updates": 3})
    assert changed.sampler_settings == {"scale": 9.0}
    assert changed.settings == {"objective": "denoising", "learning_rate": 2.0, "updates": 3}
    assert recipe.sampler_settings == {"scale": 1.0} and recipe.settings["learning_rate"] == 1e-3


def test_a_name_belongs_to_the_module_that_registers_it(monkeypatch: pytest.MonkeyPatch) -> None:
    restored(METHODS, monkeypatch)
    with pytest.raises(ValueError, match=f"method 'base' of {__name__} is taken by pirf_ray.methods.plain"):
        register(Recipe(**{**TITLED, "name": "base"}))
    recipe = register(Recipe(**TITLED))
    assert METHODS["mine"] is recipe
    again = register(Recipe(**{**TITLED, "title": "again"}))  # a module may be loaded again
    assert METHODS["mine"] is again
    assert METHODS.describe()[-1].split("  ", 1)[1].strip() == "again. a paper."
