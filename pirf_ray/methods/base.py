"""The method seam: a published method is a recipe, one declarative value that names parts and their settings.

The mathematics is in the parts' rooms (pirf_ray.learning, pirf_ray.steering). ``pirf_ray.methods.running`` trains and samples
with any recipe. A recipe of your own is named by ``--methods module:name``.

>>> from envs.common.search import Range
>>> half = Recipe(
...     name="half-guided",
...     title="DiffusionPDE, weaker",
...     paper="Huang et al. 2024, arXiv 2406.17763",
...     steerer="diffusion-pde",
...     steerer_settings={"guidance": 0.05},
...     search={"guidance": Range(0.01, 0.1)},
... )
>>> half.trains, half.defaults
(False, {'guidance': 0.05})
>>> half.with_settings({"guidance": 0.02}).steerer_settings
{'guidance': 0.02}
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch

from envs.common.registry import Registry
from envs.common.search import Spec
from envs.pdes import PDE
from pirf_ray.diffusion.checkpoints import ModelInfo
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.diffusion.policy import Policy
from pirf_ray.metrics.cost import count_residual_gradients

Settings = dict[str, Any]
"""Settings of a method by name: numbers and strings."""
Weights = dict[str, torch.Tensor]
"""Learned tensors by name. Empty if nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A method: the parts that train and sample, with their settings."""

    name: str
    """Name in ``--method`` and ``--methods``. Files are named by it."""
    title: str
    """Name in tables."""
    paper: str
    """Paper or package in which the method was published."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the training by the names of ``train``'s flags, in place of those of the PDE's small preset."""
    search: Mapping[str, Spec] = field(default_factory=dict)
    """Range of each setting that is searched. The recipe's own value is the first trial, so it must lie in the range."""
    steerer: str = ""
    """Name of the steerer. Empty: nothing steers."""
    steerer_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the steerer."""
    sampler: str = ""
    """Name of the sampler. Empty: the policy makes the steps of the process."""
    sampler_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the sampler."""
    finisher: str = "none"
    """Name of the finisher."""
    finisher_settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings of the finisher."""
    samples_of: str = ""
    """Method whose samples the finisher ends, with its training, settings and sampler. These samples are made once for both."""
    in_benchmark: bool = True
    """Whether it is a row of the benchmark unless the user names the rows."""
    claims_tilt: bool = False
    """Whether the samples follow p(x) exp(r(x)/beta) / Z, p the base model's law (docs/glossary.md)."""

    def __post_init__(self) -> None:
        _require(
            self, bool(re.fullmatch(r"\w[\w.-]*", self.name)), "letters, digits, '_', '-' and '.' only, files are named by it"
        )
        _require(self, not (self.steerer and self.sampler), "a steerer makes a sampler: name one of them")
        own = self.settings or self.search or self.steerer or self.sampler
        _require(self, not (self.samples_of and own), f"it finishes the samples of {self.samples_of!r} and adds a finisher only")
        known = self._known()
        for name, spec in self.search.items():
            _require(self, name in known, f"the searched setting {name!r} has no value; values: {', '.join(known) or 'none'}")
            _require(self, spec.holds(known[name]), f"the value {known[name]!r} of {name!r} is outside its range {spec}")

    @property
    def trains(self) -> bool:
        """Whether it learns before it samples: its settings name an objective."""
        return "objective" in self.settings

    @property
    def line(self) -> str:
        """Return the line about it in lists."""
        return f"{self.title}. {self.paper}."

    @property
    def defaults(self) -> Settings:
        """Return the recipe's own values of the searched settings, in the order of the search."""
        known = self._known()
        return {name: known[name] for name in self.search}

    def with_settings(self, settings: Mapping[str, Any]) -> "Recipe":
        """Return the recipe with other values. A value goes to the part that has it already, else to the training."""
        rest = dict(settings)
        groups: dict[str, Any] = {}
        for group in ("steerer_settings", "sampler_settings", "finisher_settings"):
            own = getattr(self, group)
            groups[group] = {**own, **{name: rest.pop(name) for name in own.keys() & rest.keys()}}
        return replace(self, search={}, settings={**self.settings, **rest}, **groups)

    def _known(self) -> Settings:
        """Return the values of all parts by name."""
        return {**self.settings, **self.sampler_settings, **self.steerer_settings, **self.finisher_settings}


def _require(recipe: Recipe, holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(f"method {recipe.name!r}: {message}")


METHODS: Registry[Recipe] = Registry("method", flag="methods")
"""Recipes by name, in the order of the tables."""
find_method = METHODS.find


def register(recipe: Recipe) -> Recipe:
    """Register a recipe under its name, and return it. It belongs to the module that calls this function.

    ValueError if the name belongs to another module.
    """
    return METHODS.add(recipe.name, recipe, owner=sys._getframe(1).f_globals["__name__"])


@dataclass(frozen=True, kw_only=True, eq=False)
class Problem:
    """What every method is given. x is (b, c, h, w), float32, model units, on the base model's device."""

    info: ModelInfo
    """Description of the base model."""
    base: AbstractDenoiser
    """Base model, which no method changes."""
    num_steps: int = 20
    """N that methods train for."""

    @cached_property
    def pde(self) -> PDE:
        """Return the PDE."""
        return self.info.pde()

    @property
    def device(self) -> torch.device:
        """Return the base model's device."""
        return Policy(self.base, tuned=self.base).device

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Return the mean square residual (b,) of the PDE's default operator, physical units. Its gradients are metered."""
        residual = self.pde.residual(self.pde.normalizer.to_physical(x), self.pde.default_operator)
        count_residual_gradients(residual)
        return residual
