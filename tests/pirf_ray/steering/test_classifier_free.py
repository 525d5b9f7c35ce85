"""Classifier-free guidance: the scale between and beyond the base and the tuned model."""

import pytest
import torch

from envs.common.checks import ConfigError
from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import SAMPLERS, PolicySampler, SampleBatch
from pirf_ray.metrics.cost import Meter
from pirf_ray.steering.classifier_free import ClassifierFree, ClassifierFreeSettings
from tiny_models import tiny_denoiser

PROCESS = DenoisingProcess(6)


def policy(scope: str = "all") -> Policy:
    return Policy(tiny_denoiser(), tuned=tiny_denoiser(seed=1), scope=scope, switch_sigma=PROCESS.sigmas[4])


def noise() -> torch.Tensor:
    return seeding.normal(0, "guided", range(2), (1, 8, 8)).float()


@torch.no_grad()
def sample(scale: float, of: Policy, process: DenoisingProcess = PROCESS) -> torch.Tensor:
    sampler = SAMPLERS.make("classifier-free", ClassifierFreeSettings(scale=scale), of)
    return sampler.for_batch(SampleBatch(seed=0, stream="guided", ids=range(2)))(process, noise())


@pytest.mark.parametrize("solver", ["heun", "stochastic"])
@pytest.mark.parametrize("scope", ["all", "tail"])
def test_scale_one_is_the_tuned_model_and_scale_zero_the_base(scope: str, solver: str) -> None:
    process, of, batch = DenoisingProcess(6, solver), policy(scope), SampleBatch(seed=0, stream="guided", ids=range(2))
    with torch.no_grad():
        tuned = PolicySampler(of, batch)(process, noise())
        base = PolicySampler(Policy(of.base, tuned=of.base), batch)(process, noise())
    assert torch.equal(sample(1.0, of, process), tuned)
    assert torch.equal(sample(0.0, of, process), base) and not torch.equal(tuned, base)


def test_the_scale_moves_the_prediction_from_the_base_past_the_tuned() -> None:
    """D is linear in the scale s: D(3) - D(1) = 2 (D(1) - D(0)). Float32 rounding of a difference of fields of size 1."""
    of, x = policy(), noise()
    with torch.no_grad():
        at = {s: ClassifierFree(ClassifierFreeSettings(scale=s), of).between(of.base, of.tuned)(x, 1.0) for s in (0.0, 1.0, 3.0)}
    assert not torch.allclose(at[0.0], at[1.0], atol=1e-3)
    torch.testing.assert_close(at[3.0] - at[1.0], 2 * (at[1.0] - at[0.0]), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "scope", "forwards"), [(0.0, "all", 11), (1.0, "all", 11), (2.0, "all", 22), (2.0, "tail", 14)]
)
def test_only_the_denoisers_that_it_needs_are_evaluated(scale: float, scope: str, forwards: int) -> None:
    """Heun with 6 steps: 11 evaluations. The last 2 steps, which the tuned weights make with scope tail, have 3 of them."""
    with Meter() as meter:
        sample(scale, policy(scope))
    assert meter.cost.per(2).network_forwards == forwards


def test_a_negative_scale_is_refused() -> None:
    with pytest.raises(ConfigError, match="--scale must not be negative, got -1"):
        ClassifierFreeSettings(scale=-1.0)
