"""Low-rank factors: their start, their gradient, their rank, the tensors without factors."""

import pytest
import torch

from envs.common.checks import ConfigError
from envs.numerics import seeding
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.learning.parameters.layers import learning_names
from pirf_ray.learning.parameters.low_rank import LowRank, LowRankSettings
from tiny_models import RESOLUTION, tiny_config, tiny_denoiser, tiny_learner, tiny_source

LOW_RANK = {"parameters": "low-rank", "lora_rank": 2}
FACTORS = (".0.up", ".0.down")


def attached(
    rank: int = 2, dtype: torch.dtype = torch.float64, **settings: object
) -> tuple[Denoiser, dict[str, torch.nn.Parameter]]:
    """Return the tiny denoiser with factors, and the factors by name."""
    denoiser, groups = LowRank(LowRankSettings(lora_rank=rank, **settings)).attach(tiny_denoiser(dtype=dtype))
    (group,) = groups
    return denoiser, group.parameters


def moved(factors: dict[str, torch.nn.Parameter]) -> None:
    """Draw the factors B, which start at zero, so that the product is not zero."""
    with torch.no_grad():
        for i, (name, factor) in enumerate(factors.items()):
            if name.endswith(".up"):
                factor.copy_(0.1 * seeding.normal(0, "up", [i], tuple(factor.shape))[0])


def merged(denoiser: Denoiser) -> Denoiser:
    """Return a plain denoiser whose weights are W_0 + B A."""
    plain = tiny_denoiser(dtype=next(denoiser.parameters()).dtype)
    with torch.no_grad():
        for name, weight in plain.network.named_parameters():
            module, _, own = name.rpartition(".")
            weight.copy_(getattr(denoiser.network.get_submodule(module), own))
    return plain


def fields() -> torch.Tensor:
    return seeding.normal(0, "x", range(2), (1, RESOLUTION, RESOLUTION))


def test_the_start_is_the_base_model_bit_for_bit() -> None:
    """B = 0, and W_0 + 0 = W_0 in floating point. The layout is the layout of a policy on a CPU."""
    denoiser, _ = attached(dtype=torch.float32)
    base, x = tiny_denoiser(), fields().float()
    for layout in (torch.contiguous_format, torch.channels_last):
        base, denoiser = base.to(memory_format=layout), denoiser.to(memory_format=layout)
        with torch.no_grad():
            assert torch.equal(denoiser(x, 0.3), base(x, 0.3))


def test_factors_get_the_gradient_of_the_merged_weights() -> None:
    """dL/dB = (dL/dW) A^T and dL/dA = B^T (dL/dW), with dL/dW by autograd through a plain network with the weights W_0 + B A.

    Both ways are float64 and differ by rounding, about 1e-13 of the largest gradient.
    """
    denoiser, factors = attached()
    moved(factors)
    plain = merged(denoiser)
    torch.testing.assert_close(plain(fields(), 0.3), denoiser(fields(), 0.3), rtol=1e-12, atol=1e-12)
    denoiser(fields(), 0.3).square().sum().backward()
    plain(fields(), 0.3).square().sum().backward()
    weights = dict(plain.network.named_parameters())
    scale = max(factor.grad.abs().max().item() for factor in factors.values())
    for name, up in factors.items():
        if not name.endswith(".up"):
            continue
        down = factors[name.removesuffix("up") + "down"]
        gradient = weights[name.replace(".parametrizations", "").removesuffix(".0.up")].grad.flatten(1)
        torch.testing.assert_close(up.grad, gradient @ down.detach().T, rtol=1e-9, atol=1e-11 * scale)
        torch.testing.assert_close(down.grad, up.detach().T @ gradient, rtol=1e-9, atol=1e-11 * scale)


def test_low_rank_updates_have_their_rank_and_leave_biases() -> None:
    config = tiny_config(**LOW_RANK)
    trained = tiny_learner(config)
    for _ in range(3):
        trained.update(tiny_source(config).batch(0))
    before, after = (dict(merged(d).network.named_parameters()) for d in (tiny_denoiser(), trained.policy.tuned))
    assert before.keys() == after.keys()
    ranks = set()
    for name, weight in after.items():
        change = weight - before[name]
        if weight.ndim < 2:
            assert torch.equal(change, torch.zeros_like(change)), name
        else:
            ranks.add(int(torch.linalg.matrix_rank(change.reshape(len(change), -1).double(), rtol=1e-3)))
    assert max(ranks) == 2


def test_only_factors_learn_and_are_published() -> None:
    """Two factors per weight of two or more dimensions. All other tensors are frozen."""
    trained = tiny_learner(tiny_config(**LOW_RANK))
    weights = [name for name, p in tiny_denoiser().network.named_parameters() if p.ndim >= 2]
    expected = {
        f"{head}.parametrizations.{tail}{factor}" for head, _, tail in (w.rpartition(".") for w in weights) for factor in FACTORS
    }
    assert trained.published().keys() == trained.weights().keys() == expected
    assert {name for name, p in trained.policy.tuned.tensors().items() if p.requires_grad} == expected
    assert all(factor.shape[name.endswith(".up")] <= 2 for name, factor in trained.weights().items())


def test_published_factors_make_another_worker_the_same_policy() -> None:
    config = tiny_config(**LOW_RANK, scope="all", strategy="fresh")
    trained, source = tiny_learner(config), tiny_source(config)
    source.publish(0, trained.published())
    trained.update(source.batch(0))
    worker = tiny_source(config).worker
    worker.load(trained.published())
    x = fields().float()
    with torch.no_grad():
        assert torch.equal(worker.policies.tuned.tuned(x, 0.3), trained.policy.tuned(x, 0.3))
        assert not torch.equal(worker.policies.tuned.tuned(x, 0.3), worker.policies.tuned.base(x, 0.3))


@pytest.mark.parametrize("levels", [1, 2])
def test_factors_are_in_the_learning_layers_only(levels: int) -> None:
    denoiser, factors = attached(levels=levels, layer_mode="truncate")
    names = {name.replace(".parametrizations", "").removesuffix(".0.up").removesuffix(".0.down") for name in factors}
    known = dict(tiny_denoiser().network.named_parameters())
    assert names == {name for name in learning_names(tiny_denoiser(), levels) if known[name].ndim >= 2}
    assert denoiser.truncate_levels == levels


@pytest.mark.parametrize("rank", [0, -1])
def test_a_rank_below_one_is_refused_by_its_flag(rank: int) -> None:
    with pytest.raises(ConfigError, match=f"--lora-rank must be at least 1, got {rank}"):
        tiny_config(parameters="low-rank", lora_rank=rank)
