"""The mean reward of a set: in batches or as one set, without gradient, with broken samples."""

import math

import pytest
import torch

from envs.pdes import PDE
from envs.rewards import FunctionReward
from pirf_ray.metrics import rewards
from pirf_ray.metrics.rewards import MeanReward
from recorded_reward import RecordedReward


@pytest.fixture
def fields() -> torch.Tensor:
    return torch.randn((5, 1, 8, 8), generator=torch.Generator().manual_seed(0))


def test_it_is_asked_in_batches_without_gradient(fields: torch.Tensor, pde: PDE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "BATCH", 2)
    reward = RecordedReward(differentiable=True)
    value = MeanReward(reward)(fields.requires_grad_(), fields, pde)
    assert reward.rows == [2, 2, 1] and not any(call.with_graph for call in reward.calls)
    assert value == pytest.approx(-fields.detach().square().mean().item(), rel=1e-6)  # float32 means of 64 values


def test_a_reward_of_sets_sees_the_whole_set(fields: torch.Tensor, pde: PDE, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "BATCH", 2)
    reward = RecordedReward(scope="set")
    assert MeanReward(reward)(fields, fields, pde) == pytest.approx(0, abs=1e-6)  # it subtracts the mean of the call
    assert reward.rows == [5]


def test_a_broken_sample_counts_as_minus_infinity_and_is_not_asked_for(fields: torch.Tensor, pde: PDE) -> None:
    fields[3, 0, 0, 0] = math.nan
    reward = RecordedReward()
    assert MeanReward(reward)(fields, fields, pde) == -math.inf
    assert reward.rows == [4] and reward.calls[0].fields.isfinite().all()
    assert MeanReward(reward)(fields[3:4], fields, pde) == -math.inf


def test_a_reward_that_is_nan_counts_as_minus_infinity(fields: torch.Tensor, pde: PDE) -> None:
    reward = FunctionReward(lambda x: x.new_tensor([math.nan, 1, 1, 1, 1]), differentiable=False)
    assert MeanReward(reward)(fields, fields, pde) == -math.inf
