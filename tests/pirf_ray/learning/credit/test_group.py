"""Group-relative advantages: against numpy, and over a tree."""

from typing import Any

import numpy as np
import pytest
import torch

from pirf_ray.learning.credit import CREDITS
from pirf_ray.learning.credit.group import EPSILON, GroupSettings, relative, spread
from pirf_ray.learning.losses import Batch
from pirf_ray.learning.rollouts.records import Prefix, Rollouts, Sample, Trajectory

GROUPS = (3, 3, 3, 5, 5, 5)
REWARD = torch.tensor([1.0, 2.0, 6.0, -4.0, -4.0, 2.0])


def sample(reward: torch.Tensor = REWARD, groups: tuple[int, ...] = GROUPS) -> Sample:
    ids = tuple(range(len(groups)))
    return Sample(sample_ids=ids, groups=groups, x=torch.zeros(len(ids), 1, 2, 2), reward=reward)


def tree(reward: torch.Tensor) -> Trajectory:
    """Return trees of a root, a child, and two leaves below this child; a third leaf is the root's other child."""
    nodes, count = 5, reward.shape[1]
    return Trajectory(
        sample_ids=tuple(range(count)),
        groups=GROUPS[:count],
        x=torch.zeros(nodes, count, 1, 2, 2),
        steps=(0, 1, 2, 2, 2),
        parents=(-1, 0, 1, 1, 0),
        leaves=(2, 3, 4),
        mean=torch.zeros(nodes, count, 1, 2, 2),
        log_density=torch.zeros(nodes, count),
        reward=reward,
    )


def advantages(rollouts: Rollouts, **settings: Any) -> torch.Tensor:
    credit = CREDITS.make("group", GroupSettings(**settings), None)
    return credit.advantages(Batch(rollouts=rollouts, key=(0, 0)))


def by_numpy(reward: torch.Tensor, groups: tuple[int, ...], *, normalize: bool) -> np.ndarray:
    values, found = reward.double().numpy(), np.zeros(len(groups))
    for group in set(groups):
        own = np.array(groups) == group
        found[own] = values[own] - values[own].mean()
        if normalize:
            found[own] /= values[own].std() + EPSILON
    return found


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("order", [(0, 1, 2, 3, 4, 5), (3, 0, 5, 1, 4, 2)])
def test_samples_are_compared_with_their_group(normalize: bool, order: tuple[int, ...]) -> None:
    """In whatever order they come. float32 rounding is 1e-7 of rewards of about 5, over a standard deviation of about 2."""
    reward, groups = REWARD[list(order)], tuple(GROUPS[i] for i in order)
    found = advantages(sample(reward, groups), normalize=normalize)
    np.testing.assert_allclose(found.double().numpy(), by_numpy(reward, groups, normalize=normalize), rtol=1e-5, atol=1e-6)


def test_equal_rewards_have_no_advantage() -> None:
    """And no division by zero."""
    assert advantages(sample(torch.full((6,), 0.25))).tolist() == [0.0] * 6


def test_advantages_do_not_change_if_all_rewards_of_a_group_move_or_stretch() -> None:
    moved = torch.cat([3 * REWARD[:3] - 7, REWARD[3:]])
    torch.testing.assert_close(advantages(sample(moved)), advantages(sample()), rtol=1e-5, atol=1e-5)


def test_every_transition_of_a_chain_has_the_advantage_of_its_end() -> None:
    chain = Trajectory(
        sample_ids=tuple(range(6)),
        groups=GROUPS,
        x=torch.zeros(4, 6, 1, 2, 2),
        steps=(0, 1, 2, 3),
        parents=(-1, 0, 1, 2),
        leaves=(3,),
        mean=torch.zeros(4, 6, 1, 2, 2),
        log_density=torch.zeros(4, 6),
        reward=REWARD[None],
    )
    assert torch.equal(advantages(chain), advantages(sample()).expand(4, 6))


def test_the_leaves_of_a_tree_are_all_compared_and_a_node_has_their_mean() -> None:
    """Nine leaves of three trees are one group."""
    reward = torch.arange(9.0).reshape(3, 3).square()
    found = advantages(tree(reward))
    leaves = torch.from_numpy(by_numpy(reward.flatten(), (0,) * 9, normalize=True)).reshape(3, 3)
    expected = torch.stack([leaves.mean(0), leaves[:2].mean(0), *leaves])
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_a_node_without_leaves_below_it_has_none_of_their_values() -> None:
    pruned = tree(torch.zeros(3, 2))
    object.__setattr__(pruned, "leaves", (2, 3))
    found = spread(pruned, torch.tensor([[1.0, 2.0], [3.0, 6.0]]))
    assert found.tolist() == [[2.0, 4.0], [2.0, 4.0], [1.0, 2.0], [3.0, 6.0], [0.0, 0.0]]


def test_numbers_of_groups_mean_nothing() -> None:
    groups = torch.tensor([900, 900, 7, 7])
    reward = torch.tensor([1.0, 3.0, 10.0, 20.0])
    assert relative(reward, groups, normalize=False).tolist() == [-1.0, 1.0, -5.0, 5.0]


def test_prefixes_have_no_rewards_to_compare() -> None:
    prefix = Prefix(sample_ids=(0,), groups=(0,), x=torch.zeros(1, 1, 2, 2), step=1)
    with pytest.raises(TypeError, match="group credit needs samples or trajectories, got Prefix"):
        advantages(prefix)
