"""Training and sampling with any recipe: the same code for all methods."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from envs.common.checks import ConfigError
from envs.common.parts import PartRegistry, PartSettings
from envs.common.registry import choose, imported_name
from envs.denoising import DenoisingProcess
from envs.rewards import RewardSettings
from pirf_ray.diffusion.model import Finisher, Model
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import SAMPLERS, PolicySampler, SampleBatch, Sampler, SamplerSettings, for_batch
from pirf_ray.learning.parameters.attach import tuned_policy
from pirf_ray.learning.parameters.residual_adapter import give_pde
from pirf_ray.methods.base import METHODS, Problem, Recipe, Settings, Weights, find_method
from pirf_ray.methods.planning import updates_within
from pirf_ray.steering import FINISHERS, STEERERS, SteeringContext, steer
from pirf_ray.steering.correction import Correction, residual_floor
from pirf_ray.training.finetuning import local_tuning
from pirf_ray.training.presets import small
from pirf_ray.training.settings import TrainConfig


def config_of(recipe: Recipe, problem: Problem, settings: Settings, *, updates: int = 1, seed: int = 0) -> TrainConfig:
    """Return the settings of a recipe's training: the PDE's small preset, the recipe's own, then the given ones.

    The preset's K is cut to the problem's N. ValueError on an unknown setting, ConfigError on a wrong value.
    """
    info, preset = problem.info, small(problem.info.env_id)
    truncation = min(preset.policy.truncation, problem.num_steps)
    chosen = {"num_steps": problem.num_steps, "truncation": truncation, **recipe.with_settings(settings).settings}
    return preset.with_settings(**{**chosen, "resolution": info.resolution, "updates": updates, "seed": seed})


def train(recipe: Recipe, problem: Problem, settings: Settings, *, budget: float, seed: int) -> Weights:
    """Learn from the base model, spending at most ``budget`` (network forwards, a gradient counting two more).

    Return what was learned: nothing if the recipe does not train. ConfigError if the budget pays for no update.
    """
    if not recipe.trains:
        return {}
    give_pde(problem.base, problem.pde)
    updates = updates_within(config_of(recipe, problem, settings, seed=seed), problem.info, budget)
    config = config_of(recipe, problem, settings, updates=updates, seed=seed)
    tuning = local_tuning(config, problem.info, problem.base)
    tuning.fit()
    return tuning.kept_weights()


def policy_of(recipe: Recipe, problem: Problem, settings: Settings, weights: Weights) -> Policy:
    """Return the policy with what the recipe has learned. Without a training it is the base model itself."""
    if not recipe.trains:
        return Policy(problem.base, tuned=problem.base)
    give_pde(problem.base, problem.pde)
    config = config_of(recipe, problem, settings)
    policy = tuned_policy(problem.base, config.process, config.policy, config.learning_parameters)
    policy.load_learned(weights)
    return policy.to(problem.device)


def sampler(recipe: Recipe, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
    """Return the sampler of a recipe with what it has learned. A recipe that finishes other samples ends them."""
    if recipe.samples_of:
        return Finished(sampler(find_method(recipe.samples_of), problem, settings, weights), finisher(recipe, problem))
    policy = policy_of(recipe, problem, settings, weights)
    return _steps(recipe, problem, settings, policy) or PolicySampler(policy)


def _steps(recipe: Recipe, problem: Problem, settings: Settings, policy: Policy) -> Sampler | None:
    """Return the sampler that the recipe names, or that its steerer makes. None if the policy makes the steps."""
    chosen = recipe.with_settings(settings)
    if recipe.steerer:
        own = _settings(STEERERS, recipe.steerer, chosen.steerer_settings)
        return steer(STEERERS.make(recipe.steerer, own, _context(recipe, problem, settings, policy)))
    if recipe.sampler:
        return SAMPLERS.make(recipe.sampler, _settings(SAMPLERS, recipe.sampler, chosen.sampler_settings), policy)
    return None


def _context(recipe: Recipe, problem: Problem, settings: Settings, policy: Policy) -> SteeringContext:
    """Return what a steerer is given: the training's reward. Of the physics reward guidance lowers the residual itself."""
    config, pde = config_of(recipe, problem, settings), problem.pde
    physical = isinstance(config.reward_settings, RewardSettings) and pde.provides("operators")
    return SteeringContext(
        policy=policy,
        reward=config.make_reward(pde),
        normalizer=pde.normalizer,
        residual=problem.residual if physical else None,
        floor=residual_floor(pde, pde.default_operator) if physical else 0.0,
    )


def finisher(recipe: Recipe, problem: Problem, operator: str = "") -> Finisher:
    """Return the finisher of a recipe, by the named operator or the PDE's default. Gradients of the default's are metered."""
    own = _settings(FINISHERS, recipe.finisher, recipe.finisher_settings)
    made = FINISHERS.make(recipe.finisher, own, problem.pde, operator)
    if isinstance(made, Correction) and operator in ("", problem.pde.default_operator):
        made.residual = problem.residual
    return made


def _settings(registry: PartRegistry[Any], name: str, values: Mapping[str, Any]) -> PartSettings:
    """Return a part's settings with some values. ValueError names the known settings."""
    default = registry.settings(name)
    known = [f.name for f in fields(default)]
    unknown = sorted(values.keys() - set(known))
    if unknown:
        raise ValueError(
            f"unknown settings of {registry.kind} {name!r}: {', '.join(unknown)}; known: {', '.join(known) or 'none'}"
        )
    return replace(default, **values)


@dataclass(frozen=True)
class Finished:
    """Sampler whose samples a finisher ends."""

    made: Sampler
    finisher: Finisher

    def for_batch(self, batch: SampleBatch) -> "Finished":
        """Return the sampler of the samples of a batch."""
        return Finished(for_batch(self.made, batch), self.finisher)

    def __call__(self, process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        """Return the finished samples x_0 (b, c, h, w) of standard normal noise, model units."""
        return self.finisher(self.made(process, noise))


# --- recipes as defaults of the commands ---


def named(name: str) -> Recipe:
    """Return the recipe that ``--method`` names. ``module:name`` imports the module first. ValueError names the known recipes."""
    return choose("method", imported_name(name, "method"), METHODS)


def recipe_settings(name: str) -> Settings:
    """Return a recipe's settings by the names of ``train``'s flags. ConfigError if the recipe does not train."""
    recipe = named(name)
    trained = find_method(recipe.samples_of) if recipe.samples_of else recipe
    if not trained.trains:
        able = ", ".join(sorted(n for n, known in METHODS.items() if known.trains))
        raise ConfigError(f"--method {name}: it trains nothing; methods that train: {able}")
    corrections = recipe.finisher_settings.get("corrections", 0)
    return {**trained.settings, "corrections": corrections}


def sampled_as(name: str, model: Model) -> Model:
    """Return a model that samples as the named recipe does: with its steerer or sampler, and its finisher.

    The weights and the steps are the model's, with the solver that the recipe names, if it names one.
    """
    recipe = named(name)
    made_by = find_method(recipe.samples_of) if recipe.samples_of else recipe
    problem = Problem(info=model.info, base=model.policy.base, num_steps=model.sampler.num_steps)
    steps = {f.name: made_by.settings[f.name] for f in fields(SamplerSettings) if f.name in made_by.settings}
    return replace(
        model,
        sampler=replace(model.sampler, **{**steps, "num_steps": problem.num_steps}),
        own_sampler=_steps(made_by, problem, {}, model.policy),
        finisher=None if recipe.finisher == "none" else finisher(recipe, problem, model.operator),
    )
