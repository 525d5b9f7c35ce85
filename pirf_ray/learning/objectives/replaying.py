"""The replay of the last K steps with gradient, with the KL of its stochastic steps."""

from dataclasses import dataclass

import torch

from envs.denoising import State
from envs.numerics import seeding
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.losses import Batch, Context
from pirf_ray.metrics.cost import Cost


@dataclass(frozen=True, kw_only=True, eq=False)
class Replay:
    """Samples made again from earlier states, on the autograd graph."""

    x: torch.Tensor
    """Finished samples x_0 (b, c, h, w)."""
    kl: torch.Tensor
    """KL divergence (b,) of the stochastic steps to the reference's; 0 if it was not asked for."""


def replay_from(context: Context, policies: Policies, batch: Batch, state: State, *, with_kl: bool = False) -> Replay:
    """Return the tuned policy's samples from a state of the process. The key and the sample ids decide the noise."""
    process, condition = context.process, batch.rollouts.condition
    tuned_from, base_from = policies.tuned.denoisers(process, condition), policies.base.denoisers(process, condition)
    noise = seeding.NoiseStream(batch.key[0], f"replay {batch.stream}", batch.rollouts.sample_ids, draws=process.num_steps)
    kl = state.x.new_zeros(len(state.x))
    while not process.terminal(state):
        x, sigma = process.observe(state)
        denoised, drawn = tuned_from(process.sigmas[state.step])(x, sigma), None
        if process.has_density(state.step):
            drawn = noise.draw(tuple(x.shape[1:])).to(x)
            if with_kl:
                based = process.step_law(state, base_from(process.sigmas[state.step])(x, sigma))
                kl = kl + based.divergence_from(process.step_law(state, denoised).mean)
        state = process.transition(state, denoised, drawn)
    return Replay(x=state.x, kl=kl)


def replay_cost(context: Context, step: int, samples: int, *, with_kl: bool = False) -> Cost:
    """Return the evaluations of ``replay_from`` from the start of a step and of its backward pass.

    The reference's first evaluation has no gradient: neither its weights nor the first state are on the graph.
    """
    process = context.process
    densities = sum(process.has_density(i) for i in range(step, process.num_steps)) if with_kl else 0
    forwards = process.evaluations_from(step) + densities
    without = int(with_kl and process.has_density(step))
    return Cost(network_forwards=forwards * samples, network_gradients=(forwards - without) * samples)
