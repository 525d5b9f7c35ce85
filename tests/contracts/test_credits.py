"""Credits: the shape of advantages, and their independence of the split over ranks."""

from dataclasses import replace

import pytest
import torch

from objective_runs import context_of
from pirf_ray.learning.credit import CREDITS
from pirf_ray.learning.losses import Batch
from pirf_ray.learning.rollouts.records import Rollouts, Sample, Trajectory
from tiny_models import tiny_config

NAMES = sorted(CREDITS)
GROUPS = (0, 0, 0, 0, 5, 5, 5, 5)
REWARD = torch.tensor([1.0, 3.0, 2.0, 9.0, -1.0, 0.0, 4.0, 2.0])


def sample() -> Sample:
    return Sample(sample_ids=tuple(range(8)), groups=GROUPS, x=torch.zeros(8, 1, 2, 2), reward=REWARD)


def chain() -> Trajectory:
    nodes = 4
    shape = (nodes, 8, 1, 2, 2)
    return Trajectory(
        sample_ids=tuple(range(8)),
        groups=GROUPS,
        x=torch.arange(float(nodes * 8 * 4)).reshape(shape),
        steps=(0, 1, 2, 3),
        parents=(-1, 0, 1, 2),
        leaves=(3,),
        mean=torch.zeros(shape),
        log_density=torch.zeros(nodes, 8),
        reward=REWARD[None],
        base_mean=torch.zeros(shape),
        base_log_density=torch.zeros(nodes, 8),
    )


def advantages(name: str, rollouts: Rollouts) -> torch.Tensor | None:
    config = tiny_config(num_steps=3, truncation=2, solver="stochastic", regularizers=("l2",), strategy="fresh")
    credit = CREDITS.make(name, None, context_of(config))
    return credit.advantages(Batch(rollouts=rollouts, key=(0, 0)))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rollouts", [sample(), chain()], ids=["samples", "trajectories"])
def test_advantages_are_finite_and_there_is_one_for_each_sample_or_transition(name: str, rollouts: Rollouts) -> None:
    assert CREDITS[name].min_group >= 1
    found = advantages(name, rollouts)
    if found is None:
        return
    expected = (8,) if isinstance(rollouts, Sample) else (4, 8)
    assert tuple(found.shape) == expected and bool(found.isfinite().all()) and not found.requires_grad
    assert torch.equal(rollouts.reward.flatten(), REWARD), "rollouts stay as they are"


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rollouts", [sample(), chain()], ids=["samples", "trajectories"])
def test_whole_groups_on_other_ranks_change_nothing(name: str, rollouts: Rollouts) -> None:
    """Each half holds one group. The sums are float32, of rewards below 10."""
    whole = advantages(name, rollouts)
    if whole is None:
        return
    halves = [advantages(name, rollouts.select(rows)) for rows in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(torch.cat(halves, dim=-1), whole, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_group_of_equal_rewards_has_finite_advantages(name: str) -> None:
    found = advantages(name, replace(sample(), reward=torch.full((8,), 2.5)))
    assert found is None or bool(found.isfinite().all())
