"""Properties of every registered sampler, and of samplers inside a model: noise, batches, conditions."""

from collections.abc import Sequence

import pytest
import torch

from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from envs.rewards.base import RewardOutput
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.model import BASE, TUNED, Model
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import (
    SAMPLERS,
    PolicySampler,
    SampleBatch,
    Sampler,
    SamplerSettings,
    StepNoise,
    advance,
    finish,
    for_batch,
)
from pirf_ray.metrics.cost import Meter
from pirf_ray.steering import STEERERS, SteeringContext, steer
from pirf_ray.steering.svdd import SVDDSettings
from tiny_models import tiny_info, tiny_network

NAMES = sorted(SAMPLERS)
SOLVERS = ("heun", "euler", "2m", "stochastic")
SHAPE = (1, 8, 8)
STEPS = 5


class Elementwise(torch.nn.Module):
    """Network F(x) = w x. Its rounding does not depend on the batch, so samples can be compared bit for bit."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return self.w * x


def policy(scope: str = "tail") -> Policy:
    base = Denoiser(tiny_network(), 0.5)
    base.network = Elementwise()
    made = Policy(base, scope=scope, switch_sigma=DenoisingProcess(STEPS).sigmas[2])
    made.load_learned({"w": torch.tensor(0.5)})
    return made


def sample(sampler: Sampler, solver: str, ids: Sequence[int] = (0, 1, 2), **batch: object) -> torch.Tensor:
    samples = SampleBatch(**{"seed": 0, "stream": "samplers", "ids": ids, **batch})
    with torch.no_grad():
        return for_batch(sampler, samples)(DenoisingProcess(STEPS, solver), seeding.normal(0, "samplers", ids, SHAPE).float())


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("name", NAMES)
def test_a_registered_sampler_is_metered_finite_and_knows_no_other_sample(name: str, solver: str) -> None:
    sampler = SAMPLERS.make(name, None, policy())
    with Meter() as meter:
        x = sample(sampler, solver)
    assert meter.cost.per(3).network_forwards == DenoisingProcess(STEPS, solver).num_evaluations
    assert (x.shape, x.dtype) == ((3, *SHAPE), torch.float32) and x.isfinite().all()
    assert torch.equal(sample(sampler, solver, (2, 0)), x[[2, 0]])
    assert torch.equal(sample(sampler, solver, seed=1), x) == (solver != "stochastic")


@pytest.mark.parametrize("scope", ["tail", "all"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_the_policy_sampler_makes_the_steps_of_the_process(solver: str, scope: str) -> None:
    """A stochastic step takes the next draw of the samples' own stream, whose first draw is the start noise."""
    by, process = policy(scope), DenoisingProcess(STEPS, solver)
    stream = seeding.NoiseStream(0, "samplers", range(3))
    state = process.initial(stream.draw(SHAPE).float())
    with torch.no_grad():
        while not process.terminal(state):
            denoised = by.denoisers(process)(process.sigmas[state.step])(*process.observe(state))
            noise = stream.draw(SHAPE).float() if process.has_density(state.step) else None
            state = process.transition(state, denoised, noise)
    assert torch.equal(sample(SAMPLERS.make("policy", None, by), solver), state.x)
    assert torch.equal(sample(PolicySampler(by), solver), state.x)


def test_the_noise_of_a_step_may_be_asked_in_any_order() -> None:
    batch = SampleBatch(seed=3, stream="s", ids=(4, 1))
    stream = seeding.NoiseStream(3, "s", (4, 1))
    drawn = [stream.draw(SHAPE).float() for _ in range(5)]
    noise_at = StepNoise(batch, torch.empty(2, *SHAPE))
    for step in (0, 1, 3, 1, 0, 3):
        assert torch.equal(noise_at(step), drawn[step + 1])


def test_a_purpose_has_a_stream_of_its_own() -> None:
    batch = SampleBatch(seed=3, stream="s", ids=(4, 1))
    assert torch.equal(batch.random().draw((2,)), seeding.normal(3, "s", (4, 1), (2,)))
    assert torch.equal(batch.random("steer").draw((2,)), seeding.normal(3, "s: steer", (4, 1), (2,)))


def test_a_stochastic_sampler_needs_the_names_of_its_samples() -> None:
    noise = seeding.normal(0, "samplers", range(2), SHAPE).float()
    with pytest.raises(ValueError, match="a stochastic step draws noise by sample id: name the samples"):
        PolicySampler(policy())(DenoisingProcess(3, "stochastic"), noise)


def test_a_plain_function_is_a_sampler_for_every_batch() -> None:
    def double(process: DenoisingProcess, noise: torch.Tensor) -> torch.Tensor:
        return 2 * noise

    assert for_batch(double, SampleBatch(seed=0, stream="s", ids=(0,))) is double
    assert torch.equal(sample(double, "heun"), 2 * seeding.normal(0, "samplers", range(3), SHAPE).float())


def test_a_condition_reaches_the_policy() -> None:
    """Two rows of conditions, in the order of the samples."""

    class Conditioned(Policy):
        def denoisers(self, process, condition=None):
            return lambda step_sigma: lambda x, sigma: 0 * x + condition["level"].reshape(-1, 1, 1, 1)

    made = Conditioned(policy().base)
    x = sample(PolicySampler(made), "heun", (0, 1), condition={"level": torch.tensor([1.0, 2.0])})
    assert x.flatten(1).mean(1).tolist() == [1.0, 2.0]


# --- samplers in a model ---


def model(scope: str = "tail", **parts: object) -> Model:
    return Model(info=tiny_info(), policy=policy(scope), sampler=SamplerSettings(num_steps=STEPS, solver="stochastic"), **parts)


def made(
    of: Model, groups: Sequence[str] = (TUNED,), ids: Sequence[int] = range(5), **options: object
) -> dict[str, torch.Tensor]:
    return of.sample(ids, seed=3, stream="t", groups=groups, **options)


@pytest.mark.parametrize("scope", ["tail", "all"])
def test_groups_of_a_stochastic_model_share_their_noise(scope: str) -> None:
    """Each group is what it is alone. The base model's step to sigma = 0 is no part of the policy's samples only."""
    of = model(scope)
    both = made(of, (BASE, TUNED))
    for group in (BASE, TUNED):
        assert torch.equal(made(of, (group,))[group], both[group])
    batch = SampleBatch(seed=3, stream="t", ids=range(5))
    noise = seeding.normal(3, "t", range(5), SHAPE).float()
    with torch.no_grad():
        tuned = PolicySampler(of.policy, batch)(of.process, noise)
        start = advance(of.process, of.policy.base_from, of.process.initial(noise), 2, StepNoise(batch, noise))
        base = finish(of.process, of.policy.base_from, start, StepNoise(batch, noise))
    assert torch.equal(both[TUNED], of.pde.normalizer.to_physical(tuned))
    assert torch.equal(both[BASE], of.pde.normalizer.to_physical(base))
    assert not torch.equal(both[TUNED], both[BASE])


class Amplitude:
    """Reward -|mean square - 1|."""

    differentiable, scope = False, "sample"

    def __call__(self, fields, condition=None):
        return RewardOutput(reward=-(fields.square().flatten(1).mean(1) - 1).abs())


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_sample_of_a_steered_or_stochastic_model_depends_on_its_id_only(batch: int) -> None:
    of = model()
    context = SteeringContext(policy=of.policy, reward=Amplitude(), normalizer=of.pde.normalizer)
    steered = model(own_sampler=steer(STEERERS.make("svdd", SVDDSettings(proposals=3), context)))
    for one in (of, steered):
        whole = made(one, ids=range(7), batch=7)[TUNED]
        torch.testing.assert_close(made(one, ids=(6, 1, 3), batch=batch)[TUNED], whole[[6, 1, 3]], rtol=1e-6, atol=1e-6)
    reward = Amplitude()
    assert reward(made(steered)[TUNED]).reward.mean() > reward(made(of)[TUNED]).reward.mean()
