"""Fine-tuning by a reward, for the methods that differ only in settings of pirf_ray's own training loop."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

from envs.common.checks import ConfigError
from envs.common.search import Range, Spec
from pirf_ray.diffusion.policy import make_policy
from pirf_ray.diffusion.sampling import PolicySampler, Sampler
from pirf_ray.learning.objectives import find_objective
from pirf_ray.methods.base import Method, Problem, Settings, Weights
from pirf_ray.training.finetuning import local_tuning
from pirf_ray.training.presets import small
from pirf_ray.training.settings import TrainConfig

FRESH: dict[str, Any] = {"scope": "all", "strategy": "fresh", "reuse": 1, "staleness": 0, "chunk": 8}
"""The tuned weights act at every sigma, so that every update makes its prefixes with them: exact, M = 1, S = 0."""
BATCH: dict[str, Any] = {"batch": 8, "micro_batch": 8, "workers": 1, "schedule": "cosine", "ema_decay": 0.95}
"""Settings that all share: many small updates that come to rest do best at budgets of minutes."""
PAPER: dict[str, Any] = {**FRESH, **BATCH, "anchor": 0.0, "guard": "off"}
"""Settings of published methods: no anchor, no guard."""
LONGEST = 4
"""K of the methods that draw their own truncation up to it: the small preset's."""


class RewardTuned(Method):
    """A fine-tuning with the small preset of the PDE, some settings changed."""

    trains = True

    @abstractmethod
    def changes(self, settings: Settings) -> dict[str, Any]:
        """Return the settings that differ from the small preset, by the names of their flags."""

    def config(self, problem: Problem, settings: Settings, *, updates: int = 1, seed: int = 0) -> TrainConfig:
        """Return the whole training's settings."""
        changes = {"num_steps": problem.num_steps, **self.changes(settings)}
        preset = small(problem.info.env_id)
        return preset.with_settings(resolution=problem.info.resolution, seed=seed, updates=updates, **changes)

    def train(self, problem: Problem, settings: Settings, *, budget: float, seed: int) -> Weights:
        updates = updates_within(self.config(problem, settings), budget)
        config = self.config(problem, settings, updates=updates, seed=seed)
        tuning = local_tuning(config, problem.info, problem.base)
        tuning.fit()
        return tuning.kept_weights()

    def sampler(self, problem: Problem, settings: Settings, weights: Weights) -> Sampler:
        config = self.config(problem, settings)
        policy = make_policy(problem.base, config.process, config.policy)
        policy.load_learned(weights)
        return PolicySampler(policy.to(problem.device))


class ByReward(RewardTuned):
    """Methods of the field that differ in what they backpropagate through.

    The log reward with conditions, scope ``all``, every layer learns; regularized by lambda ||theta - theta_0||^2.
    """

    objective: str
    """Name of the objective."""
    truncation = LONGEST
    """K."""
    rates = (3e-5, 1e-3)
    """Range of learning rates that is searched."""

    def defaults(self, problem: Problem) -> Settings:
        return {"learning_rate": 1e-4, "l2": 1.0}

    def search(self, problem: Problem) -> Mapping[str, Spec]:
        return {"learning_rate": Range(*self.rates), "l2": Range(1e-2, 100.0)}

    def changes(self, settings: Settings) -> dict[str, Any]:
        return {**PAPER, "objective": self.objective, "truncation": self.truncation, "levels": 0, **settings}


def updates_within(config: TrainConfig, budget: float) -> int:
    """Return the updates that a budget (network forwards) pays for, prefixes included; ConfigError if it pays for none."""
    process = config.process
    rollout, batch = config.rollout, config.optimizer.batch
    replayed = process.evaluations_from(config.prefix_steps)
    prefix = process.num_evaluations - replayed + (replayed if config.regularization.anchor else 0)
    pooled = rollout.strategy == "pool"
    start = prefix * rollout.pool_start if pooled else 0
    made = rollout.pool_growth if pooled else batch / rollout.reuse
    each = made * prefix + batch * find_objective(config.objective).cost(process, config.policy.truncation)
    updates = int((budget - start) / each)
    if updates < 1:
        raise ConfigError(f"--budget {budget:g} pays for no update: the first costs {start + each:g} network forwards")
    return updates
