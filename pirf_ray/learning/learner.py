"""The learner: one update of the policy from a batch of rollouts. No Ray.

    learnables step -> credit fills advantages -> objective + regularizers -> one flat gradient, summed over ranks -> Adam -> average

The objective owns the loss (pirf_ray.learning.objectives). Truncated reward backpropagation with weight regularization (Yuan et
al. 2025, arXiv 2509.20570) is the objective ``pathwise`` with the regularizer ``l2``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from envs.denoising import DenoisingProcess
from envs.pdes import PDE
from envs.rewards import PhysicsReward, Reward
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.diffusion.ema import Ema
from pirf_ray.diffusion.policy import Policy, PolicySettings
from pirf_ray.learning.communicator import Communicator
from pirf_ray.learning.learnables import Learnable, LearnableSteps
from pirf_ray.learning.losses import Batch, Context, Loss
from pirf_ray.learning.optimization import GroupedAdam, OptimizerSettings
from pirf_ray.learning.parameters.attach import ParameterChoice, make_policies
from pirf_ray.learning.parts import PartChoices, Parts
from pirf_ray.learning.regularizers.weight_distance import weight_distance
from pirf_ray.learning.rollouts.records import Rollouts, Sample, Trajectory, join
from pirf_ray.learning.rollouts.sources import LEARNABLE, REFERENCE
from pirf_ray.learning.updates import TermMetrics, UpdateMetrics


class TrainingDiverged(RuntimeError):
    """Error of a training with too many non-finite gradients."""


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """All settings that decide an update."""

    parts: PartChoices
    """Objective, credit and regularizers, with their settings."""
    policy: PolicySettings
    """Settings of the policy."""
    parameters: ParameterChoice
    """Learning parameters, with their settings."""
    optimizer: OptimizerSettings
    """Settings of the optimizer."""
    seed: int = 0
    """Seed of the random choices of objectives."""


class Learner:
    """Policies with their optimizer, and whatever learns beside them."""

    def __init__(
        self,
        settings: LearningSettings,
        base: AbstractDenoiser,
        *,
        process: DenoisingProcess,
        pde: PDE,
        reward: Reward,
        communicator: Communicator,
        device: torch.device,
    ) -> None:
        self.settings, self.process, self.pde, self.reward = settings, process, pde, reward
        self.communicator, self.device = communicator, device
        context = Context(process=process, pde=pde, truncation=settings.policy.steps(process.num_steps))
        self.parts: Parts = settings.parts.make(context)
        objective = self.parts.objective
        self.behaviour = objective.behaviour_of(objective.settings)
        old = self.behaviour == "old"
        self.policies, groups = make_policies(base, process, settings.policy, settings.parameters, old=old)
        self.policies.to(device)
        self.optimizer = GroupedAdam(groups)
        self.ema = Ema(self.weights(), settings.optimizer.ema_decay)
        self.learnables: Mapping[str, Learnable] = self.parts.objective.learnables()
        self.learnable_steps = LearnableSteps(self.learnables, device)
        self.skipped = 0
        self.floors = {term.name: term.floor for term in reward.terms} if isinstance(reward, PhysicsReward) else {}

    @property
    def policy(self) -> Policy:
        """Return the policy that learns."""
        return self.policies.tuned

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the learning tensors by name, without a copy."""
        return self.policies.learned(self.policies.tuned)

    def published(self) -> dict[str, torch.Tensor]:
        """Return what the makers of rollouts need: tensors of the behaviour policy, of learnables, of a moved reference."""
        policies = self.policies
        tensors = {} if self.behaviour == "base" else policies.learned(self._behaviour())
        reference = policies.learned(policies.base) if policies.resets else {}
        return {
            **tensors,
            **{f"{REFERENCE}{name}": tensor for name, tensor in reference.items()},
            **{f"{LEARNABLE}{name}": tensor for name, tensor in self.learnable_steps.tensors().items()},
        }

    def _behaviour(self) -> Policy:
        return self.averaged_policy() if self.behaviour == "average" else self.policies.behaviour(self.behaviour)

    def averaged_policy(self) -> Policy:
        """Return the policy with the averaged weights. This policy is evaluated, guarded and kept."""
        self.policies.average.load_learned(self.ema.tensors)
        return self.policies.average

    def update(self, rollouts: list[Rollouts]) -> UpdateMetrics:
        """Make one update from this rank's share of the batch. Return its metrics, which are the same on every rank.

        An update with a non-finite gradient is skipped and counted. TrainingDiverged after more than ``max_skipped`` of them.
        """
        settings = self.settings.optimizer
        self.optimizer.clear()
        batch = Batch(rollouts=join(rollouts, self.device), key=(self.settings.seed, self.ema.updates))
        beside = self.learnable_steps.step(batch, self.communicator)
        names, rows = self._accumulate(self._with_advantages(batch))
        gradient, rows = self._reduce(rows)
        rate, distance = settings.rate(self.ema.updates), None
        if torch.isfinite(gradient).all():
            self.optimizer.step(gradient, rate=rate, clip_norm=settings.clip_norm)
            self.ema.update(self.weights())
            self.parts.advance(self.policies, self.ema.updates)
            distance = weight_distance(self.weights(), self.policies.start).sqrt().item()
        else:
            self.skipped += 1
            if self.skipped > settings.max_skipped:
                raise TrainingDiverged(f"{self.skipped} updates had a non-finite gradient, allowed are {settings.max_skipped}")
        return self._metrics(names, rows, gradient.norm().item(), rate, distance, beside)

    def _with_advantages(self, batch: Batch) -> Batch:
        with torch.no_grad():
            advantages = self.parts.credit.advantages(batch)
        return Batch(rollouts=batch.rollouts, key=batch.key, advantages=advantages)

    def _accumulate(self, batch: Batch) -> tuple[list[tuple[str, str]], torch.Tensor]:
        """Backpropagate this rank's samples. Return (kind, name) of each row of numbers, and the rows (rows, samples)."""
        size = self.settings.optimizer.micro_batch
        micros = [batch.select(slice(start, start + size)) for start in range(0, len(batch), size)]
        names: list[tuple[str, str]] = []
        rows = []
        for micro in micros:
            numbers = self._backpropagate(micro)
            names = list(numbers)
            rows.append(torch.stack([numbers[name].to(torch.float32) for name in names]))
        return names, torch.cat(rows, dim=1)

    def _backpropagate(self, batch: Batch) -> dict[tuple[str, str], torch.Tensor]:
        """Return the numbers (b,) of one micro-batch by kind and name, after its backward pass."""
        objective = self.parts.objective
        loss = objective.loss(batch, self.policies, self.reward)
        for regularizer in self.parts.regularizers:
            loss = loss.plus(regularizer.penalty(batch, self.policies, loss))
        (loss.value * (len(batch) / self.settings.optimizer.batch)).backward()  # type: ignore[no-untyped-call]
        return self._numbers(batch, loss)

    def _numbers(self, batch: Batch, loss: Loss) -> dict[tuple[str, str], torch.Tensor]:
        named, violations = dict(loss.metrics), dict(loss.violations)
        parts: dict[str, torch.Tensor] = {}
        rollouts = batch.rollouts
        if isinstance(rollouts, Sample | Trajectory):
            over_leaves = rollouts.reward.ndim == 2
            named["reward"] = rollouts.reward.mean(0) if over_leaves else rollouts.reward
            for name, value in rollouts.parts.items():
                known = name in self.pde.operators or name in self.pde.conditions
                (violations if known else parts)[name] = value.mean(0) if over_leaves else value
        return {
            **{("named", name): value.detach() for name, value in named.items()},
            **{("part", name): value.detach() for name, value in parts.items()},
            **{("violation", name): value.detach() for name, value in violations.items()},
        }

    def _reduce(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the batch's flat gradient, and the rows of all ranks side by side: one sum over the ranks."""
        flat = self.optimizer.flat_gradient()
        gathered = rows.new_zeros((rows.shape[0], self.communicator.world, rows.shape[1]))
        gathered[:, self.communicator.rank] = rows
        total = self.communicator.sum(torch.cat([flat, gathered.flatten().to(flat)]))
        return total[: len(flat)], total[len(flat) :].reshape(rows.shape[0], -1)

    def _metrics(
        self,
        names: list[tuple[str, str]],
        rows: torch.Tensor,
        grad_norm: float,
        rate: float,
        distance: float | None,
        beside: dict[str, float],
    ) -> UpdateMetrics:
        means = {name: row.mean().item() for name, row in zip(names, rows.double(), strict=True)}
        named = {name: value for (kind, name), value in means.items() if kind == "named"}
        if "reward" not in named:
            raise ValueError(f"the objective {self.settings.parts.objective} must name the number 'reward', got {sorted(named)}")
        terms = {
            name: self._term(name, row) for (kind, name), row in zip(names, rows.double(), strict=True) if kind == "violation"
        }
        return UpdateMetrics(
            reward=named.pop("reward"),
            grad_norm=grad_norm,
            learning_rate=rate,
            skipped=self.skipped,
            weight_distance=distance,
            named=named | beside,
            parts={name: value for (kind, name), value in means.items() if kind == "part"},
            terms=terms,
        )

    def _term(self, name: str, violation: torch.Tensor) -> TermMetrics:
        mean, is_residual = violation.mean().item(), name in self.pde.operators
        floor = self.floors.get(name, 0.0)  # 0: a PDE without a solver has no floor
        over = mean / floor if is_residual and floor else None
        return TermMetrics(is_residual=is_residual, mean=mean, median=violation.median().item(), over_floor=over)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint needs beside the weights and their average, as tensors and plain containers."""
        return {
            "optimizer": self.optimizer.state(),
            "ema_updates": self.ema.updates,
            "skipped": self.skipped,
            "policies": self.policies.state(),
            "resets": self.policies.resets,
            "learnables": self.learnable_steps.state(),
        }

    def load(self, model: dict[str, torch.Tensor], ema: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Continue from a checkpoint's learning tensors, their averages and ``state()``. ValueError if the names differ."""
        if model.keys() != self.weights().keys():
            raise ValueError("the checkpoint has other learning tensors than this run: other --parameters or another network")
        self.policies.tuned.load_learned(model)
        self.ema.load(ema, state["ema_updates"])
        self.optimizer.load(state["optimizer"])
        self.policies.load(state.get("policies", {}), state.get("resets", 0))
        self.learnable_steps.load(state.get("learnables", {}))
        self.skipped = state["skipped"]
