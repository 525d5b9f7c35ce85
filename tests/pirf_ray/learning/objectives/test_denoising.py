"""The diffusion loss on data as an objective: its value, its law of noise, dropped conditionings, its training."""

import pytest
import torch

from data_training import CONTEXT, PDE8, data_batch, policies_of
from envs.common.checks import ConfigError
from pirf_ray.diffusion.denoiser import AbstractDenoiser
from pirf_ray.diffusion.losses.denoising import denoising_loss
from pirf_ray.diffusion.policy import Policy
from pirf_ray.learning.objectives.denoising import Denoising, DenoisingSettings, noised_data
from pirf_ray.learning.parameters.residual_adapter import KEPT, give_pde
from pirf_ray.metrics.cost import Meter
from tiny_models import tiny_denoiser


def objective(**settings: float) -> Denoising:
    return Denoising(DenoisingSettings(**settings), CONTEXT)


def test_the_loss_is_that_of_pretraining() -> None:
    """The same mean in another order: float32 rounding of a mean over 1,024 numbers."""
    batch, policies = data_batch(), policies_of(tiny_denoiser())
    loss = objective().loss(batch, policies, None)
    data = noised_data(batch, DenoisingSettings(), "denoising")
    noise = (data.x - data.y) / data.sigma[:, None, None, None]
    torch.testing.assert_close(loss.value, denoising_loss(policies.tuned.tuned, data.y, data.sigma, noise), rtol=1e-4, atol=0)
    assert loss.metrics["denoising"].shape == (16,)
    assert not loss.metrics["denoising"].requires_grad and loss.value.requires_grad


def test_noise_is_a_function_of_key_and_ids_whatever_the_micro_batch() -> None:
    batch = data_batch(3)
    whole = noised_data(batch, DenoisingSettings(), "denoising")
    part = noised_data(batch.select(slice(4, 8)), DenoisingSettings(), "denoising")
    assert torch.equal(whole.x[4:8], part.x) and torch.equal(whole.sigma[4:8], part.sigma)
    for other in (
        noised_data(data_batch(3, seed=1), DenoisingSettings(), "denoising"),
        noised_data(batch, DenoisingSettings(), "pidm"),
    ):
        assert not torch.equal(whole.sigma, other.sigma)


@pytest.mark.parametrize(("mean", "std"), [(-1.2, 1.2), (-2.5, 1.5)])
def test_the_law_of_noise(mean: float, std: float) -> None:
    """640 draws: ln sigma has a standard error of std/25 in the mean, std/36 in the standard deviation; the noise 1/202."""
    settings = DenoisingSettings(noise_mean=mean, noise_std=std)
    data = [noised_data(data_batch(update), settings, "denoising") for update in range(40)]
    logs = torch.cat([part.sigma for part in data]).log()
    assert logs.mean().item() == pytest.approx(mean, abs=4 * std / 25) and logs.std().item() == pytest.approx(
        std, abs=4 * std / 36
    )
    noise = torch.cat([(part.x - part.y).double() / part.sigma[:, None, None, None] for part in data])
    assert noise.mean().item() == pytest.approx(0, abs=4 / 202) and noise.std().item() == pytest.approx(1, abs=4 / 286)


def test_the_default_law_of_noise_is_edms() -> None:
    assert (DenoisingSettings().noise_mean, DenoisingSettings().noise_std) == (-1.2, 1.2)


class Recorded(AbstractDenoiser):
    """A denoiser that keeps the conditions of its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.sigma_data, self.conditions = 0.14, []
        self.w = torch.nn.Parameter(torch.zeros(()))

    def forward(self, x, sigma, condition=None):
        self.conditions.append(condition)
        return self.w * x


def kept(dropped: float, updates: int = 100) -> torch.Tensor:
    policies = policies_of(Recorded())
    own = objective(condition_dropped=dropped)
    for update in range(updates):
        own.loss(data_batch(update), policies, None)
    return torch.stack([condition[KEPT] for condition in policies.tuned.tuned.conditions])


def test_one_conditioning_in_ten_is_dropped() -> None:
    """Of 100 updates of 16: .1 with a standard error of sqrt(.1 .9 / 1600) = .0075."""
    drawn = kept(DenoisingSettings().condition_dropped)
    assert drawn.shape == (100, 16) and set(drawn.unique().tolist()) == {0.0, 1.0}
    assert 1 - drawn.mean().item() == pytest.approx(0.1, abs=4 * 0.0075)
    assert kept(1.0, 1).sum() == 0


def test_nothing_is_said_of_conditionings_that_are_all_kept() -> None:
    policies = policies_of(Recorded())
    objective(condition_dropped=0.0).loss(data_batch(), policies, None)
    assert policies.tuned.tuned.conditions == [None]


def test_metered_cost_is_the_stated_cost_with_an_adapter_and_without() -> None:
    for parameters in ("layers", "residual-adapter"):
        base = tiny_denoiser()
        give_pde(base, PDE8)
        policies, batch = policies_of(base, parameters), data_batch()
        with Meter() as meter:
            objective().loss(batch, policies, None).value.backward()
        stated = objective().cost(batch)
        assert meter.cost.network_forwards == stated.network_forwards == 16
        assert meter.cost.network_gradients == stated.network_gradients == 16
        assert meter.cost.residual_gradients == (16 if parameters == "residual-adapter" else 0)


@pytest.mark.parametrize("parameters", ["layers", "residual-adapter"])
def test_gradient_steps_lower_the_loss(parameters: str) -> None:
    """30 steps of Adam on their own batches, judged on four other batches."""
    base = tiny_denoiser()
    give_pde(base, PDE8)
    policies, own = policies_of(base, parameters), objective()
    learning = [policies.tuned.tuned.tensors()[name] for name in policies.start]
    adam = torch.optim.Adam(learning, lr=3e-3)

    def judged(policy: Policy) -> float:
        with torch.no_grad():
            batches = [noised_data(data_batch(update, seed=9), DenoisingSettings(), "test") for update in range(4)]
            return sum(b.error(policy.tuned(b.x, b.sigma), b_sigma).mean().item() for b in batches)

    b_sigma = policies.tuned.tuned.sigma_data
    before = judged(policies.tuned)
    for update in range(30):
        adam.zero_grad()
        own.loss(data_batch(update), policies, None).value.backward()
        adam.step()
    assert judged(policies.tuned) < before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"condition_dropped": 1.5}, r"--condition-dropped must be in \[0, 1\], got 1.5"),
        ({"noise_std": 0.0}, "--noise-std must be positive, got 0.0"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DenoisingSettings(**settings)
