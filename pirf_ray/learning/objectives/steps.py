"""What the objectives on trajectories share: the tuned policy's law of each stochastic transition."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from envs.denoising import State
from envs.transitions import StochasticStep
from pirf_ray.diffusion.policies import Policies
from pirf_ray.learning.losses import Batch, Context
from pirf_ray.learning.rollouts.records import Trajectory


@dataclass(frozen=True, kw_only=True, eq=False)
class Transition:
    """A stochastic transition of b chains."""

    node: int
    """Node that the transition leads to."""
    state: State
    """State that it starts from."""
    after: torch.Tensor
    """State (b, c, h, w) that it led to."""
    law: StochasticStep
    """Law of the next state under the tuned policy, on the autograd graph."""


def trajectory_of(batch: Batch) -> Trajectory:
    """Return the batch's trajectories. TypeError for another kind of rollouts."""
    if not isinstance(batch.rollouts, Trajectory):
        raise TypeError(f"this objective needs trajectories, got {type(batch.rollouts).__name__}")
    return batch.rollouts


def trained_nodes(context: Context, trajectory: Trajectory) -> list[int]:
    """Return the nodes whose transitions are stochastic and lie in the last K steps."""
    process = context.process
    first = process.num_steps - context.truncation
    return [
        node
        for node, parent in enumerate(trajectory.parents)
        if parent >= 0 and first <= trajectory.steps[parent] and process.has_density(trajectory.steps[parent])
    ]


def transitions(context: Context, policies: Policies, trajectory: Trajectory) -> Iterator[Transition]:
    """Yield the trained transitions with their laws. Siblings share the evaluation at their parent."""
    process = context.process
    denoiser_from = policies.tuned.denoisers(process, trajectory.condition)
    laws: dict[int, tuple[State, StochasticStep]] = {}
    for node in trained_nodes(context, trajectory):
        parent = trajectory.parents[node]
        if parent not in laws:
            state = State(x=trajectory.x[parent], step=trajectory.steps[parent])
            sigma = process.sigmas[state.step]
            laws[parent] = state, process.step_law(state, denoiser_from(sigma)(state.x, sigma))
        state, law = laws[parent]
        yield Transition(node=node, state=state, after=trajectory.x[node], law=law)


def trained_evaluations(context: Context, trajectory: Trajectory) -> int:
    """Return the number of evaluations per chain that ``transitions`` makes."""
    return len({trajectory.parents[node] for node in trained_nodes(context, trajectory)})


def reference_mean(trajectory: Trajectory, node: int) -> torch.Tensor:
    """Return the reference's mean (b, c, h, w) of the transition to a node. ValueError if the maker left it out."""
    if trajectory.base_mean is None:
        raise ValueError("a KL term needs the reference's means: --reference-densities")
    return trajectory.base_mean[node]
