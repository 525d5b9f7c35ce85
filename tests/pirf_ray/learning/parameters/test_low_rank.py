"""Low-rank factors: their gradient, their rank, the tensors without factors."""

import pytest
import torch

from envs.common.checks import ConfigError
from envs.numerics import seeding
from pirf_ray.learning.parameters.base import ParameterSettings
from pirf_ray.learning.parameters.low_rank import LowRank
from tiny_models import tiny_config, tiny_learner, tiny_source


def test_factors_get_the_gradient_of_their_product() -> None:
    """The pull-back of dL/dW equals dL/dA and dL/dB by autograd through W_0 + B A."""
    weight = torch.nn.Parameter(seeding.normal(0, "w", [0], (6, 4, 3, 3))[0])
    bias = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
    factors = LowRank({"w": weight, "b": bias}, 2, seed=1)
    down, up = factors.parameters()
    with torch.no_grad():
        up.copy_(seeding.normal(0, "up", [0], tuple(up.shape))[0])
    factors.write()
    x = seeding.normal(0, "x", range(2), (4, 5, 5))
    weight.grad = torch.autograd.grad(torch.conv2d(x, weight).square().sum(), weight)[0]
    factors.pull_back()
    product = (factors.start["w"].reshape(6, -1) + up @ down).reshape(weight.shape)
    expected = torch.autograd.grad(torch.conv2d(x, product).square().sum(), (down, up))
    torch.testing.assert_close((down.grad, up.grad), expected)
    assert list(factors.targets) == ["w"]
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        LowRank({"w": weight}, 0)


def test_low_rank_updates_have_their_rank_and_leave_biases() -> None:
    config = tiny_config(lora_rank=2)
    trained = tiny_learner(config)
    for _ in range(3):
        trained.update(tiny_source(config).batch(0))
    for name, weight in trained.weights().items():
        change = weight - trained.reference[name]
        if weight.ndim < 2:
            assert torch.equal(change, torch.zeros_like(change))
        else:
            assert torch.linalg.matrix_rank(change.reshape(len(change), -1).double(), rtol=1e-3) <= 2
    assert trained.weights().keys() == tiny_learner(tiny_config()).weights().keys()


def test_a_negative_rank_is_refused_by_its_flag() -> None:
    with pytest.raises(ConfigError, match="--lora-rank must not be negative, got -1"):
        ParameterSettings(lora_rank=-1)
