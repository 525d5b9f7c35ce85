"""Training on solver data, for the methods that continue with the diffusion loss: batches, and the loop around a loss."""

import math
from collections.abc import Callable

import torch

from envs.common.checks import ConfigError
from envs.numerics import seeding
from pirf_ray.diffusion.ema import Ema
from pirf_ray.methods.base import Problem, Weights

FIELDS = 1024
"""Solver fields that batches are drawn from."""
BATCH = 16
"""Samples of a batch."""
NOISE_MEAN, NOISE_STD = -1.2, 1.2
"""Mean and standard deviation of ln sigma, as in pretraining (EDM)."""
EMA_DECAY = 0.99
CLIP_NORM = 1.0
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""y (b, c, h, w), sigma (b,) and standard normal noise (b, c, h, w), model units."""


class SolverBatches:
    """Fields of the solver in model units with their noise levels: batch u is a function of (seed, u)."""

    def __init__(self, problem: Problem, *, seed: int) -> None:
        self.problem, self.seed = problem, seed
        self.fields = problem.pde.solve(0, "train", range(FIELDS)).float()

    def __getitem__(self, update: int) -> Batch:
        """Return the batch of an update."""
        pde, device = self.problem.pde, self.problem.device
        rng = seeding.generator(self.seed, "solver batches", update)
        fields = pde.augment(self.fields[rng.integers(FIELDS, size=BATCH)], rng)
        y = pde.normalizer.to_model(fields).float()
        sigma = torch.from_numpy(rng.normal(NOISE_MEAN, NOISE_STD, BATCH)).float().exp()
        noise = torch.from_numpy(rng.standard_normal(y.shape)).float()
        return y.to(device), sigma.to(device), noise.to(device)


def minimize(
    tensors: dict[str, torch.nn.Parameter],
    loss: Callable[[Batch, int], torch.Tensor],
    batches: SolverBatches,
    *,
    updates: int,
    learning_rate: float,
    what: str,
) -> Weights:
    """Minimize ``loss(batch, update)`` by Adam, its rate half a cosine down to zero; return the averaged tensors.

    FloatingPointError names ``what`` if the loss is not finite.
    """
    optimizer = torch.optim.Adam(tensors.values(), lr=learning_rate)
    ema = Ema(dict(tensors), EMA_DECAY)
    for update in range(updates):
        optimizer.zero_grad(set_to_none=True)
        value = loss(batches[update], update)
        if not math.isfinite(value.item()):
            raise FloatingPointError(f"{what}: the loss of update {update} is {value.item()}")
        value.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(list(tensors.values()), CLIP_NORM)
        optimizer.param_groups[0]["lr"] = learning_rate * 0.5 * (1 + math.cos(math.pi * update / updates))
        optimizer.step()
        ema.update(dict(tensors))
    return ema.tensors


def updates_for(budget: float, cost: float, what: str) -> int:
    """Return the updates of BATCH samples that a budget pays for, each sample costing ``cost`` network forwards."""
    updates = int(budget / (cost * BATCH))
    if updates < 1:
        raise ConfigError(f"--budget {budget:g} pays for no update of {what}: one costs {cost * BATCH:g} network forwards")
    return updates
