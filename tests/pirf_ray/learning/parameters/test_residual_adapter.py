"""The adapter of the residual's gradient: its start, its direction, what learns, and a run that is loaded again."""

import copy
from pathlib import Path

import pytest
import torch

from data_training import FIELDS, PDE8, policies_of
from envs.common.checks import ConfigError
from envs.numerics import seeding
from envs.pdes import PDE
from envs.pdes.base import NotProvided
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.learning.parameters import PARAMETERS
from pirf_ray.learning.parameters.residual_adapter import KEPT, ConditionedDenoiser, give_pde
from pirf_ray.metrics.cost import Meter
from pirf_ray.training.models import load_model
from tiny_models import start_run, tiny_config, tiny_denoiser, tiny_tuning


def known(**settings: object) -> Denoiser:
    denoiser = tiny_denoiser(**settings)
    give_pde(denoiser, PDE8)
    return denoiser


def adapted(denoiser: Denoiser | None = None) -> ConditionedDenoiser:
    attached, _ = PARAMETERS.make("residual-adapter").attach(denoiser or known())
    assert isinstance(attached, ConditionedDenoiser)
    return attached


def random(denoiser: ConditionedDenoiser) -> ConditionedDenoiser:
    """With an adapter whose every tensor is random."""
    with torch.no_grad():
        for index, tensor in enumerate(denoiser.tensors().values()):
            tensor.normal_(generator=torch.Generator().manual_seed(index))
    return denoiser


def noise(ids: range = range(2)) -> torch.Tensor:
    return seeding.normal(0, "adapter", ids, PDE8.shape).float()


@pytest.mark.parametrize("sigma", [80.0, 1.0, 0.002])
def test_at_the_start_the_denoiser_is_the_base(sigma: float) -> None:
    """Adding zeros changes no bit."""
    assert torch.equal(adapted()(sigma * noise(), sigma), known()(sigma * noise(), sigma))


def test_only_the_adapter_learns() -> None:
    denoiser, (group,) = PARAMETERS.make("residual-adapter").attach(known())
    assert sorted(group.parameters) == ["adapter.first.bias", "adapter.first.weight", "adapter.last.bias", "adapter.last.weight"]
    assert {id(p) for p in denoiser.parameters() if p.requires_grad} == {id(p) for p in group.parameters.values()}
    denoiser(noise(), 1.0).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in group.parameters.values())
    assert group.parameters["adapter.last.weight"].grad.abs().max() > 0


def test_an_adapter_is_the_same_everywhere_and_reseeds_nothing() -> None:
    denoisers = known(), known()
    before = torch.get_rng_state()
    first, again = (adapted(denoiser).tensors()["adapter.first.weight"] for denoiser in denoisers)
    assert torch.equal(first, again) and first.abs().max() > 0
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("sigma", [80.0, 1.0, 0.002])
def test_the_direction_is_finite_and_of_size_one(sigma: float) -> None:
    direction = adapted().direction(sigma * noise(), sigma)
    torch.testing.assert_close(direction.square().mean((1, 2, 3)), torch.ones(2))


@pytest.mark.parametrize("sigma", [80.0, 0.3, 0.002])
def test_the_direction_is_taken_at_c_skip_x(sigma: float) -> None:
    """Burgers is not linear, so the gradient's direction depends on where it is taken: sd^2/(sigma^2 + sd^2) x, sd = .14."""
    x = (0.14**2 + sigma**2) ** 0.5 * noise()
    at = (0.14**2 / (sigma**2 + 0.14**2) * x.double()).requires_grad_(True)
    r = PDE8.residual(PDE8.normalizer.to_physical(at), "consistent")
    (gradient,) = torch.autograd.grad(r.sum(), at)
    direction = gradient / gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(adapted().direction(x, sigma).double(), direction, rtol=1e-2, atol=1e-3)


def test_a_residual_without_gradient_is_no_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    """A residual of 1e4 everywhere overflows when it is divided by almost nothing."""
    monkeypatch.setattr(PDE, "residual", lambda self, fields, operator: (0 * fields).flatten(1).sum(1) + 1e4)
    assert torch.equal(adapted().direction(noise(), 1.0), torch.zeros(2, *PDE8.shape))


def test_a_dropped_condition_is_none() -> None:
    """The adapter's biases act without a direction too, so that sample equals the adapter's answer to a direction of 0."""
    denoiser, x = random(adapted()), noise()
    kept, dropped = denoiser(x, 1.0), denoiser(x, 1.0, {KEPT: torch.tensor([1.0, 0.0])})
    denoiser.adapter.direction = torch.zeros_like(x)
    without = denoiser.inner(x, 1.0)
    torch.testing.assert_close(dropped[0], kept[0])
    torch.testing.assert_close(dropped[1], without[1])
    assert not torch.allclose(kept[1], without[1], atol=1e-3)


def test_the_meter_counts_the_outer_denoiser_once() -> None:
    denoiser, x = random(adapted()), noise()
    with Meter() as meter:
        denoiser(x, 1.0).sum().backward()
    assert (meter.cost.network_forwards, meter.cost.network_gradients, meter.cost.residual_gradients) == (2, 2, 2)


def test_policies_share_no_tensor() -> None:
    policies = policies_of(known(), "residual-adapter")
    with torch.no_grad():
        policies.tuned.tuned.tensors()["adapter.last.weight"].fill_(1.0)
    x = noise()
    assert not torch.equal(policies.tuned.tuned(x, 1.0), policies.base.tuned(x, 1.0))
    assert torch.equal(policies.average.tuned(x, 1.0), policies.base.tuned(x, 1.0))
    assert torch.equal(copy.deepcopy(policies.tuned.tuned)(x, 1.0), policies.tuned.tuned(x, 1.0))


def test_what_cannot_be_adapted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    attach = PARAMETERS.make("residual-adapter").attach
    with pytest.raises(ConfigError, match="--parameters residual-adapter needs the PDE of the denoiser, which is not known"):
        attach(tiny_denoiser())
    with pytest.raises(ConfigError, match="wraps the first convolution of a network, got ConditionedDenoiser"):
        attach(adapted())
    monkeypatch.setattr(type(PDE8), "provides", lambda self, name: name != "operators")
    with pytest.raises(NotProvided, match="Burgers-v0 has no residual operator .*: --parameters residual-adapter needs one"):
        attach(known())


def test_a_run_with_the_adapter_is_loaded_again(tmp_path: Path) -> None:
    """The loaded model has the tensors that the training kept, and denoises alike: a memory layout changes rounding."""
    config = tiny_config(
        objective="denoising",
        data_fields=FIELDS,
        parameters="residual-adapter",
        regularizers=(),
        scope="all",
        strategy="fresh",
        updates=2,
        guard="off",
    )
    run = start_run(tmp_path, config)
    tuning = tiny_tuning(config, run)
    tuning.fit()
    assert sorted(tuning.kept_weights()) == sorted(adapted().tensors())
    loaded, x = load_model(run.paths.root).model.policy, noise()
    own = loaded.tuned.tensors()
    assert all(torch.equal(own[name], tensor) for name, tensor in tuning.kept_weights().items())
    torch.testing.assert_close(loaded.tuned(x, 1.0), tuning.kept_policy().tuned(x, 1.0), rtol=1e-4, atol=1e-5)
    assert own["adapter.last.weight"].abs().max() > 0
