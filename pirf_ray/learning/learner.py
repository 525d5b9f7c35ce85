"""The learner: truncated reward backpropagation with weight regularization (Yuan et al. 2025, arXiv 2509.20570). No Ray.

    minimize  (1/B) sum_b [ -r(x_0^b) + mu anchor_b ] + lambda sum ||theta - theta_0||^2

over the learning weights theta. r is the reward. The objective makes each sample x_0^b from its prefix, with gradient.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch

from envs.common.checks import not_negative, positive, require
from envs.denoising import DenoisingProcess
from envs.pdes import PDE
from envs.rewards import PhysicsReward
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.ema import Ema
from pirf_ray.diffusion.policy import Policy, PolicySettings, make_policy
from pirf_ray.learning.communicator import Communicator
from pirf_ray.learning.objectives import find_objective
from pirf_ray.learning.parameters import layers
from pirf_ray.learning.parameters.base import ParameterSettings
from pirf_ray.learning.parameters.low_rank import LowRank
from pirf_ray.learning.regularizers.base import RegularizationSettings
from pirf_ray.learning.regularizers.output_anchor import output_anchor
from pirf_ray.learning.regularizers.weight_distance import weight_distance
from pirf_ray.learning.rollouts.prefixes import Prefix, join
from pirf_ray.learning.updates import TermMetrics, UpdateMetrics


class TrainingDiverged(RuntimeError):
    """Error of a training with too many non-finite gradients."""


@dataclass(frozen=True, kw_only=True)
class OptimizerSettings:
    """Settings of the optimizer and of the moving average."""

    updates: int = 100
    """Number of updates of the weights in all."""
    batch: int = 16
    """Samples per update, over all learner workers."""
    micro_batch: int = 16
    """Samples replayed at once. A larger batch accumulates its gradient over micro-batches."""
    learning_rate: float = 2e-4
    """Learning rate of Adam. There is no warm-up."""
    schedule: Literal["constant", "cosine"] = "constant"
    """Schedule of the learning rate: constant, or half a cosine down to zero at the last update."""
    clip_norm: float = 1.0
    """Largest norm of the gradient. A longer gradient is scaled down to this norm."""
    ema_decay: float = 0.9
    """Decay per update of the moving average of the learning weights. The averaged weights are evaluated and kept."""
    max_skipped: int = 10
    """Largest number of updates that are skipped for a non-finite gradient. One more ends the run."""

    def __post_init__(self) -> None:
        positive(self, "updates", "batch", "micro_batch", "learning_rate", "clip_norm")
        require(0 <= self.ema_decay < 1, f"--ema-decay must be in [0, 1), got {self.ema_decay}")
        not_negative(self, "max_skipped")


@dataclass(frozen=True, kw_only=True)
class LearningSettings:
    """All settings that decide an update."""

    objective: str
    """Name of the objective."""
    policy: PolicySettings
    """Settings of the policy."""
    parameters: ParameterSettings
    """Settings of the learning parameters."""
    regularization: RegularizationSettings
    """Settings of the regularizers."""
    optimizer: OptimizerSettings
    """Settings of the optimizer."""
    seed: int = 0
    """Seed of the objective's random choices and of the low-rank factors."""


class Learner:
    """Tuned weights with their optimizer and moving average."""

    def __init__(
        self,
        settings: LearningSettings,
        base: Denoiser,
        *,
        process: DenoisingProcess,
        pde: PDE,
        reward: PhysicsReward,
        communicator: Communicator,
        device: torch.device,
    ) -> None:
        self.settings, self.process, self.pde, self.reward = settings, process, pde, reward
        self.communicator, self.device = communicator, device
        self.policy = make_policy(base, process, settings.policy).to(device)
        self.parameters = layers.prepare(self.policy.tuned, settings.parameters.levels, settings.parameters.layer_mode)
        self.reference = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.objective = find_objective(settings.objective)
        rank = settings.parameters.lora_rank
        self.low_rank = LowRank(self.parameters, rank, seed=settings.seed) if rank else None
        stepped = self.low_rank.parameters() if self.low_rank else list(self.parameters.values())
        self.optimizer = torch.optim.Adam(stepped, lr=settings.optimizer.learning_rate)
        self.ema = Ema(dict(self.parameters), settings.optimizer.ema_decay)
        self.averaged = make_policy(self.policy.base, process, settings.policy).to(device)
        self.skipped = 0

    def weights(self) -> dict[str, torch.Tensor]:
        """Return the learning tensors by name, without a copy."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def averaged_policy(self) -> Policy:
        """Return the policy with the averaged weights. This policy is evaluated, guarded and kept."""
        self.averaged.load_learned(self.ema.tensors)
        return self.averaged

    def update(self, prefixes: list[Prefix]) -> UpdateMetrics:
        """Make one update from this rank's share of the batch. Return its metrics, which are the same on every rank.

        An update with a non-finite gradient is skipped and counted. TrainingDiverged after more than ``max_skipped`` of them.
        """
        settings = self.settings.optimizer
        for parameter in self.parameters.values():  # with low-rank factors, the optimizer has other parameters
            parameter.grad = None
        gradient, rows = self._reduce(self._accumulate(prefixes))
        rate = self.learning_rate()
        distance = None
        if torch.isfinite(gradient).all():
            self._apply(gradient, settings.clip_norm)
            distance = weight_distance(self.weights(), self.reference).sqrt().item()
        else:
            self.skipped += 1
            if self.skipped > settings.max_skipped:
                raise TrainingDiverged(f"{self.skipped} updates had a non-finite gradient, allowed are {settings.max_skipped}")
        return self._metrics(rows, gradient, rate, distance)

    def _accumulate(self, prefixes: list[Prefix]) -> torch.Tensor:
        """Backpropagate this rank's samples. Return the rows reward, anchor and each term's violation, a column per prefix."""
        joined, size = join(prefixes, self.device), self.settings.optimizer.micro_batch
        parts = [joined.select(slice(start, start + size)) for start in range(0, len(joined.x), size)]
        return torch.cat([self._backpropagate(part) for part in parts], dim=1)

    def _backpropagate(self, prefix: Prefix) -> torch.Tensor:
        """Return the rows of one micro-batch, as means over the samples that the objective makes of each prefix."""
        seed, update = self.settings.seed, self.ema.updates
        made = self.objective.samples(self.process, self.policy, prefix, seed=seed, update=update)
        share = 1 / (self.settings.optimizer.batch * len(made))
        rows = []
        loss = torch.zeros((), device=self.device)
        for x in made:
            out = self.reward(self.pde.normalizer.to_physical(x))
            anchor = self._anchor(x, prefix)
            loss = loss + share * (self.settings.regularization.anchor * anchor - out.reward).sum()
            rows.append(torch.stack([out.reward, anchor, *out.violations.values()]).detach())
        loss.backward()  # type: ignore[no-untyped-call]
        return torch.stack(rows).mean(0)

    def _anchor(self, x: torch.Tensor, prefix: Prefix) -> torch.Tensor:
        settings = self.settings.regularization
        if not settings.anchor:
            return x.new_zeros(len(x))
        if prefix.base_output is None:
            raise ValueError("the output anchor needs the base model's output of each prefix")
        return output_anchor(x, prefix.base_output, self.pde.input_channels, settings.anchor_inputs)

    def _reduce(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the batch's flat gradient, with the L2 term added once, and the rows of all ranks side by side."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]
        flat = torch.cat([g.flatten() for g in grads])
        gathered = rows.new_zeros((rows.shape[0], self.communicator.world, rows.shape[1]))
        gathered[:, self.communicator.rank] = rows
        total = self.communicator.sum(torch.cat([flat, gathered.flatten()]))
        gradient, gathered = total[: len(flat)], total[len(flat) :].reshape(rows.shape[0], -1)
        strength = self.settings.regularization.l2
        if strength:
            change = [(p.detach() - self.reference[name]).flatten() for name, p in self.parameters.items()]
            gradient = gradient + 2 * strength * torch.cat(change)
        return gradient, gathered

    def _apply(self, gradient: torch.Tensor, clip_norm: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate()
        gradient = gradient * min(1.0, clip_norm / max(gradient.norm().item(), 1e-12))
        offset = 0
        for parameter in self.parameters.values():
            parameter.grad = gradient[offset : offset + parameter.numel()].reshape(parameter.shape)
            offset += parameter.numel()
        if self.low_rank:
            self.low_rank.pull_back()
        self.optimizer.step()
        if self.low_rank:
            self.low_rank.write()
        self.ema.update(self.weights())

    def learning_rate(self) -> float:
        """Return the learning rate of the next update."""
        settings = self.settings.optimizer
        if settings.schedule == "constant":
            return settings.learning_rate
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * self.ema.updates / settings.updates))

    def _metrics(self, rows: torch.Tensor, gradient: torch.Tensor, rate: float, distance: float | None) -> UpdateMetrics:
        rows = rows.double()
        terms = {}
        for term, violation in zip(self.reward.terms, rows[2:], strict=True):
            mean, is_residual = violation.mean().item(), term.name in self.pde.operators
            terms[term.name] = TermMetrics(
                is_residual=is_residual,
                mean=mean,
                median=violation.median().item(),
                over_floor=mean / max(term.floor, 1e-300) if is_residual else None,
            )
        return UpdateMetrics(
            reward=rows[0].mean().item(),
            anchor=rows[1].mean().item(),
            grad_norm=gradient.norm().item(),
            learning_rate=rate,
            skipped=self.skipped,
            weight_distance=distance,
            terms=terms,
        )

    def state(self) -> dict[str, Any]:
        """Return the state of the optimizer and the counters, as tensors and plain containers."""
        counters = {"ema_updates": self.ema.updates, "skipped": self.skipped}
        factors = {"low_rank": self.low_rank.state()} if self.low_rank else {}
        return {"optimizer": self.optimizer.state_dict(), **counters, **factors}

    def load(self, model: dict[str, torch.Tensor], ema: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Continue from a checkpoint's learning tensors, their averages and ``state()``. ValueError if the names differ."""
        if model.keys() != self.parameters.keys():
            raise ValueError("the checkpoint has other learning tensors than this run: other --levels or another network")
        self.policy.load_learned(model)
        if self.low_rank:
            self.low_rank.load(state["low_rank"])
        self.ema.load(ema, state["ema_updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.skipped = state["skipped"]
