"""The learner: truncated reward backpropagation with weight regularization (Yuan et al. 2025, arXiv 2509.20570). No Ray.

    minimize  (1/B) sum_b [ -r(x_0^b) + mu anchor_b ] + lambda sum ||theta - theta_0||^2

over the learning weights theta, x_0 made from its prefix by the objective: with gradient through the last K steps.
"""

import math
from typing import Any

import torch

from envs.denoising import DenoisingProcess
from envs.pdes import PDE
from envs.rewards import PhysicsReward, physics_reward
from pirf_ray import truncation
from pirf_ray.communication import Communicator
from pirf_ray.config import TrainConfig
from pirf_ray.denoiser import Denoiser
from pirf_ray.ema import Ema
from pirf_ray.low_rank import LowRank
from pirf_ray.objectives import find_objective
from pirf_ray.policy import Policy, coarsest_step, switch_sigma
from pirf_ray.regularization import output_anchor, weight_distance
from pirf_ray.rollout import Prefix


class TrainingDiverged(RuntimeError):
    """Too many updates with a non-finite gradient in a row of a run."""


def make_reward(config: TrainConfig, pde: PDE) -> PhysicsReward:
    p = config.pirf
    return physics_reward(
        pde,
        operator=p.operator,
        form=p.reward_form,
        condition_weight=p.condition_weight,
        weights=p.weights,
        reference_noise=p.reference_noise,
    )


def make_policy(config: TrainConfig, base: Denoiser) -> Policy:
    """Base and tuned denoiser (equal at first), switched where the config says."""
    process = DenoisingProcess(config.sampler.num_steps, config.sampler.solver)
    k = config.pirf.truncation
    policy = Policy(base, scope=config.pirf.scope, switch_sigma=switch_sigma(process, k), coarsest=coarsest_step(process, k))
    truncation.prepare(policy.tuned, config.pirf.levels, config.pirf.layer_mode)
    return policy


def select(prefix: Prefix, rows: slice) -> Prefix:
    """Some samples of a prefix."""
    return Prefix(
        x=prefix.x[rows],
        step=prefix.step,
        sample_ids=prefix.sample_ids[rows],
        policy_version=prefix.policy_version,
        base_output=None if prefix.base_output is None else prefix.base_output[rows],
    )


class Learner:
    """Tuned weights, their optimizer and average. ``version`` counts the applied updates' weights."""

    def __init__(
        self,
        config: TrainConfig,
        base: Denoiser,
        pde: PDE,
        communicator: Communicator,
        device: torch.device,
        reward: PhysicsReward | None = None,
    ) -> None:
        self.config, self.pde, self.communicator, self.device = config, pde, communicator, device
        self.process = DenoisingProcess(config.sampler.num_steps, config.sampler.solver)
        self.reward = reward or make_reward(config, pde)
        self.policy = make_policy(config, base).to(device)
        self.parameters = truncation.prepare(self.policy.tuned, config.pirf.levels, config.pirf.layer_mode)
        self.reference = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.objective = find_objective(config.pirf.objective)
        self.low_rank = LowRank(self.parameters, config.pirf.lora_rank, seed=config.seed) if config.pirf.lora_rank else None
        stepped = self.low_rank.parameters() if self.low_rank else list(self.parameters.values())
        self.optimizer = torch.optim.Adam(stepped, lr=config.optimizer.learning_rate)
        self.ema = Ema(dict(self.parameters), config.optimizer.ema_decay)
        self.averaged = make_policy(config, self.policy.base).to(device)
        self.skipped = 0

    def weights(self) -> dict[str, torch.Tensor]:
        """The learning tensors, by name (not a copy)."""
        return {name: p.detach() for name, p in self.parameters.items()}

    def averaged_policy(self) -> Policy:
        """The policy with the averaged weights: what is evaluated, guarded and kept."""
        self.averaged.load_learned(self.ema.tensors)
        return self.averaged

    def update(self, prefixes: list[Prefix]) -> dict[str, float]:
        """One update from this rank's share of the batch; returns its metrics, the same on every rank.

        A non-finite gradient skips the update and is counted; more than ``max_skipped`` of them raise TrainingDiverged.
        """
        settings = self.config.optimizer
        for parameter in self.parameters.values():  # not the optimizer's: with low-rank factors those are others
            parameter.grad = None
        gradient, rows = self._reduce(self._accumulate(prefixes))
        metrics = self._metrics(rows, gradient)
        if not torch.isfinite(gradient).all():
            self.skipped += 1
            if self.skipped > settings.max_skipped:
                raise TrainingDiverged(f"{self.skipped} updates had a non-finite gradient, allowed are {settings.max_skipped}")
            return {**metrics, "learner/skipped": float(self.skipped)}
        self._apply(gradient, settings.clip_norm)
        distance = weight_distance(self.weights(), self.reference)
        return {**metrics, "learner/skipped": float(self.skipped), "weights/distance": distance.sqrt().item()}

    def _accumulate(self, prefixes: list[Prefix]) -> torch.Tensor:
        """Backpropagate this rank's samples; returns rows of figures by sample: reward, anchor, each term's violation."""
        columns = [self._backpropagate(prefix) for prefix in self._micro_batches(prefixes)]
        return torch.cat(columns, dim=1)

    def _backpropagate(self, prefix: Prefix) -> torch.Tensor:
        """Rows as above of one micro-batch, means over the samples that the objective makes of each prefix."""
        made = self.objective.samples(self.process, self.policy, prefix, seed=self.config.seed, update=self.ema.updates)
        share = 1 / (self.config.optimizer.batch * len(made))
        rows = []
        loss = torch.zeros((), device=self.device)
        for x in made:
            out = self.reward(self.pde.normalizer.to_physical(x))
            anchor = self._anchor(x, prefix)
            loss = loss + share * (self.config.regularization.anchor * anchor - out.reward).sum()
            rows.append(torch.stack([out.reward, anchor, *out.violations.values()]).detach())
        loss.backward()
        return torch.stack(rows).mean(0)

    def _anchor(self, x: torch.Tensor, prefix: Prefix) -> torch.Tensor:
        settings = self.config.regularization
        if not settings.anchor:
            return x.new_zeros(len(x))
        if prefix.base_output is None:
            raise ValueError("the output anchor needs the base model's output of each prefix")
        return output_anchor(x, prefix.base_output, self.pde.input_channels, settings.anchor_inputs)

    def _micro_batches(self, prefixes: list[Prefix]) -> list[Prefix]:
        joined = Prefix(
            x=torch.cat([p.x for p in prefixes]).to(self.device),
            step=prefixes[0].step,
            sample_ids=tuple(i for p in prefixes for i in p.sample_ids),
            policy_version=min(p.policy_version for p in prefixes),
            base_output=self._join_base_outputs(prefixes),
        )
        size = self.config.optimizer.micro_batch
        return [select(joined, slice(start, start + size)) for start in range(0, len(joined.x), size)]

    def _join_base_outputs(self, prefixes: list[Prefix]) -> torch.Tensor | None:
        outputs = [p.base_output for p in prefixes if p.base_output is not None]
        return torch.cat(outputs).to(self.device) if len(outputs) == len(prefixes) else None

    def _reduce(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole batch's flat gradient, the L2 term added once, and every rank's rows side by side."""
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]
        flat = torch.cat([g.flatten() for g in grads])
        gathered = rows.new_zeros((rows.shape[0], self.communicator.world, rows.shape[1]))
        gathered[:, self.communicator.rank] = rows
        total = self.communicator.sum(torch.cat([flat, gathered.flatten()]))
        gradient, gathered = total[: len(flat)], total[len(flat) :].reshape(rows.shape[0], -1)
        strength = self.config.regularization.l2
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
        """Rate of the next update; the first one's is already the whole."""
        settings = self.config.optimizer
        if settings.schedule == "constant":
            return settings.learning_rate
        return settings.learning_rate * 0.5 * (1 + math.cos(math.pi * self.ema.updates / settings.updates))

    def _metrics(self, rows: torch.Tensor, gradient: torch.Tensor) -> dict[str, float]:
        rows = rows.double()
        metrics = {
            "reward/mean": rows[0].mean().item(),
            "learner/anchor": rows[1].mean().item(),
            "learner/grad_norm": gradient.norm().item(),
            "learner/learning_rate": self.learning_rate(),
        }
        for term, violation in zip(self.reward.terms, rows[2:], strict=True):
            group = "residual" if term.name in self.pde.operators else "condition"
            metrics[f"{group}/{term.name}/mean"] = violation.mean().item()
            metrics[f"{group}/{term.name}/median"] = violation.median().item()
            if group == "residual":
                metrics["residual/over_floor"] = violation.mean().item() / max(term.floor, 1e-300)
        return metrics

    def state(self) -> dict[str, Any]:
        """Optimizer and counters: tensors and plain containers."""
        counters = {"ema_updates": self.ema.updates, "skipped": self.skipped}
        factors = {"low_rank": self.low_rank.state()} if self.low_rank else {}
        return {"optimizer": self.optimizer.state_dict(), **counters, **factors}

    def load(self, model: dict[str, torch.Tensor], ema: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Continue from a checkpoint's tensors (learning ones only) and ``state()``."""
        if model.keys() != self.parameters.keys():
            raise ValueError("the checkpoint's learning tensors are not this run's: other --levels or another network")
        self.policy.load_learned(model)
        if self.low_rank:
            self.low_rank.load(state["low_rank"])
        self.ema.load(ema, state["ema_updates"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.skipped = state["skipped"]
