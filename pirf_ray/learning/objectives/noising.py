"""What the objectives share that noise finished samples again: noise levels, noise and denoising errors.

    e(D; x_0, s, n) = |D(x_0 + s n; s) - x_0|^2 / s^2,   ln s uniform over the schedule

With this weight and this law of s, the difference of two denoisers' errors is a log ratio of likelihoods up to a factor. Levels
are those of the training's schedule, so that few-step samplers learn where they are evaluated. Their weights w make the law of
ln s uniform.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch

from envs.denoising import DenoiserFrom
from envs.numerics import seeding
from pirf_ray.learning.losses import Batch, Context
from pirf_ray.learning.rollouts.records import Sample


@dataclass(frozen=True, kw_only=True, eq=False)
class Noised:
    """Finished samples with noise of one level of the schedule."""

    rows: torch.Tensor
    """Rows (k,) of the batch."""
    x: torch.Tensor
    """Noised samples (k, c, h, w)."""
    target: torch.Tensor
    """Finished samples x_0 (k, c, h, w)."""
    sigma: float
    """Noise level."""
    weight: float
    """Weight w of the level: 1 on average over the levels."""


def sample_of(batch: Batch) -> Sample:
    """Return the batch's samples. TypeError for another kind of rollouts."""
    if not isinstance(batch.rollouts, Sample):
        raise TypeError(f"this objective needs samples, got {type(batch.rollouts).__name__}")
    return batch.rollouts


def levels(context: Context) -> tuple[list[int], list[float]]:
    """Return the trained steps of the schedule and their weights. The step to sigma = 0 of a stochastic process is frozen."""
    process = context.process
    last = process.num_steps - (1 if process.stochastic else 0)
    steps = list(range(process.num_steps - context.truncation, last))
    logs = [math.log(process.sigmas[step]) for step in steps]
    if len(steps) < 2:
        return steps, [1.0] * len(steps)
    edges = [logs[0], *[(a + b) / 2 for a, b in pairwise(logs)], logs[-1]]
    widths = [high - low for high, low in pairwise(edges)]
    return steps, [width * len(steps) / sum(widths) for width in widths]


def noised(context: Context, batch: Batch, *, draws: int, purpose: str) -> Iterator[Noised]:
    """Yield the samples, noised ``draws`` times, level by level. A group shares levels and noise.

    The key and the groups decide both. ``purpose`` names the random stream.
    """
    sample, process = sample_of(batch), context.process
    groups = sample.groups or sample.sample_ids
    steps, weights = levels(context)
    for draw in range(draws):
        stream = f"{purpose} {batch.stream} {draw}"
        chosen = {
            g: int(seeding.generator(batch.key[0], f"{stream} level", g).integers(len(steps))) for g in dict.fromkeys(groups)
        }
        distinct = list(chosen)
        noise = seeding.normal(batch.key[0], stream, distinct, tuple(sample.x.shape[1:]))
        index = torch.tensor([distinct.index(g) for g in groups])
        own = torch.tensor([chosen[g] for g in groups])
        for level in sorted(set(chosen.values())):
            rows = (own == level).nonzero().flatten().to(sample.x.device)
            sigma, target = process.sigmas[steps[level]], sample.x[rows]
            x = target + sigma * noise[index[rows.cpu()]].to(target)
            yield Noised(rows=rows, x=x, target=target, sigma=sigma, weight=weights[level])


def error(denoised: torch.Tensor, noised_: Noised) -> torch.Tensor:
    """Return the weighted denoising error w e (k,), summed over dimensions."""
    return noised_.weight * (denoised - noised_.target).square().flatten(1).sum(1) / noised_.sigma**2


def denoise(denoiser_from: DenoiserFrom, noised_: Noised) -> torch.Tensor:
    """Return the denoised fields (k, c, h, w)."""
    return denoiser_from(noised_.sigma)(noised_.x, noised_.sigma)
