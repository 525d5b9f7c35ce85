"""Properties of every registered steerer: cost, independence of the batch, rewards without graph, refusals, exact answers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from envs.common.checks import ConfigError
from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from envs.numerics.conditions import Condition
from envs.numerics.normalization import Normalizer
from envs.rewards.base import RewardOutput
from gaussian_problem import problem
from pirf_ray.diffusion.analytic import GaussianDenoiser
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.policy import Policy
from pirf_ray.diffusion.sampling import PolicySampler, SampleBatch
from pirf_ray.metrics.cost import Meter
from pirf_ray.metrics.exact import errors, expected_reward, tilt
from pirf_ray.steering import STEERERS, OneDenoiser, PlainSteerer, Steerer, SteeringContext, register, steer
from pirf_ray.steering.best_of_n import BestOfNSettings
from pirf_ray.steering.svdd import SVDDSettings
from registries import restored
from tiny_models import tiny_network

NAMES = sorted(STEERERS)
BY_GRADIENT = {"cocogen", "diffusion-pde"}
"""Shipped steerers that follow a gradient. The others need a reward only."""
SHAPE = (1, 8, 8)
STEPS = 4
SOLVERS = ("heun", "euler", "2m", "stochastic")


class Elementwise(torch.nn.Module):
    """Network F(x) = w x. No field of a batch changes another."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.tensor(0.3))

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        return self.w.to(x) * x


def denoiser() -> Denoiser:
    """Return a denoiser of data of standard deviation 0.5, float64 in and out."""
    made = Denoiser(tiny_network(), 0.5)
    made.network = Elementwise()
    return made.eval()


class Level:
    """Reward -mean (field - level)^2, at most 0. It counts the fields that it rewards, and those with a graph."""

    scope = "sample"

    def __init__(self, *, differentiable: bool = True) -> None:
        self.differentiable = differentiable
        self.fields = self.with_graph = 0

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        graph = torch.is_grad_enabled() or fields.requires_grad
        self.with_graph += len(fields) if graph else 0
        self.fields += 0 if graph else len(fields)
        level = 0.2 if condition is None else condition["level"].reshape(-1, 1, 1, 1)
        return RewardOutput(reward=-(fields - level).square().flatten(1).mean(1))


class BlackBox(Level):
    """The same reward from numpy, which has no gradient."""

    def __init__(self) -> None:
        super().__init__(differentiable=False)

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        made = super().__call__(torch.from_numpy(fields.numpy().copy()), condition)  # numpy() refuses a field with a graph
        return RewardOutput(reward=made.reward.detach())


def make(name: str, **context: Any) -> Steerer:
    return STEERERS.make(name, None, SteeringContext(**{"policy": OneDenoiser(denoiser()), "reward": Level(), **context}))


def accepted(steerer: Steerer) -> dict[str, DenoisingProcess]:
    """Return the processes that the steerer can use, by solver."""
    found = {}
    for solver in SOLVERS:
        process = DenoisingProcess(STEPS, solver, sigma_max=3.0)
        try:
            steerer.check(process)
        except ConfigError:
            continue
        found[solver] = process
    assert found
    return found


def sample(steerer: Steerer, process: DenoisingProcess, ids: tuple[int, ...] = (0, 1, 2), **batch: Any) -> torch.Tensor:
    noise = seeding.normal(0, "contract", ids, SHAPE)
    sampler = steer(steerer).for_batch(SampleBatch(**{"seed": 0, "stream": "contract", "ids": ids, **batch}))
    with torch.no_grad():
        return sampler(process, noise)


@pytest.mark.parametrize("name", NAMES)
def test_the_meter_counts_the_declared_cost_and_rewards(name: str) -> None:
    """Gradients may be fewer than declared, since data decide where a violation is 0."""
    for solver, process in accepted(make(name)).items():
        reward = Level()
        steerer = make(name, reward=reward)
        with Meter() as meter:
            sample(steerer, process)
        declared, cost = steerer.cost(process), meter.cost.per(3)
        assert cost.network_forwards == declared.network_forwards, solver
        assert cost.network_gradients <= declared.network_gradients
        assert cost.residual_gradients <= declared.residual_gradients
        assert reward.fields == 3 * steerer.rewarded(process)
        assert steer(steerer).cost(process) == declared


@pytest.mark.parametrize("name", sorted(BY_GRADIENT))
def test_guidance_has_all_its_declared_gradients(name: str) -> None:
    """N = 4 has one guided step. CoCoGen has 10 corrections after it, all of them above its floor of 0."""
    expected = {"diffusion-pde": (1, 1), "cocogen": (0, 11)}[name]
    for process in accepted(make(name)).values():
        with Meter() as meter:
            sample(make(name), process)
        assert (meter.cost.per(3).network_gradients, meter.cost.per(3).residual_gradients) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_does_not_depend_on_its_batch(name: str) -> None:
    """The random numbers are the same to the bit, so only the rounding of float64 may differ: 1e-9 is far above it."""
    for process in accepted(make(name)).values():
        whole = sample(make(name), process, (4, 0, 9, 2, 7))
        parts = torch.cat([sample(make(name), process, ids) for ids in ((4,), (0, 9, 2), (7,))])
        torch.testing.assert_close(parts, whole, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(sample(make(name), process, (7, 4)), whole[[4, 0]], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_random_numbers_depend_on_seed_and_stream(name: str) -> None:
    for solver, process in accepted(make(name)).items():
        first, again = sample(make(name), process), sample(make(name), process)
        assert torch.equal(first, again)
        others = [sample(make(name), process, seed=1), sample(make(name), process, stream="other")]
        same = [torch.equal(first, other) for other in others]
        random = solver == "stochastic" or name == "best-of-n"  # the start noise is the sampler's argument, and stays
        assert same == [not random] * 2, solver


@pytest.mark.parametrize("name", NAMES)
def test_samples_are_finite_fields_of_the_type_of_the_noise(name: str) -> None:
    for process in accepted(make(name)).values():
        x = sample(make(name), process)
        assert (x.shape, x.dtype, x.requires_grad) == ((3, *SHAPE), torch.float64, False)
        assert x.isfinite().all()
        noise = seeding.normal(0, "contract", range(2), SHAPE).float()
        with torch.no_grad():
            x = steer(make(name)).for_batch(SampleBatch(seed=0, stream="s", ids=range(2)))(process, noise)
        assert x.dtype == torch.float32


@pytest.mark.parametrize("name", NAMES)
def test_rewards_are_computed_without_graph_where_no_gradient_is_followed(name: str) -> None:
    """Also if the caller does not disable gradients, and the network's weights ask for them."""
    reward = Level()
    steerer = make(name, reward=reward)
    for process in accepted(steerer).values():
        noise = seeding.normal(0, "contract", range(2), SHAPE)
        steer(steerer).for_batch(SampleBatch(seed=0, stream="s", ids=range(2)))(process, noise)
    assert (reward.with_graph > 0) == (name in BY_GRADIENT)


@pytest.mark.parametrize("name", NAMES)
def test_a_black_box_reward_works_or_is_refused_in_one_sentence(name: str) -> None:
    if name in BY_GRADIENT:
        message = (
            f"--steer {name} follows a gradient, and the reward BlackBox has none; known without a gradient: best-of-n, svdd"
        )
        with pytest.raises(ConfigError, match=rf"^{message}$"):
            make(name, reward=BlackBox())
        make(name, reward=BlackBox(), residual=lambda x: x.square().flatten(1).mean(1))
        return
    for process in accepted(make(name)).values():
        black_box = BlackBox()
        torch.testing.assert_close(sample(make(name, reward=black_box), process), sample(make(name), process))
        assert black_box.fields == 3 * make(name).rewarded(process)


@pytest.mark.parametrize("name", NAMES)
def test_rewards_that_a_steerer_cannot_use_are_refused(name: str) -> None:
    set_reward, short = Level(), Level()
    set_reward.scope = "set"
    with pytest.raises(
        ConfigError, match=f"^--steer {name} needs a reward of scope 'sample', and the reward Level has scope 'set'$"
    ):
        make(name, reward=set_reward)
    with pytest.raises(ConfigError, match=f"^--steer {name} needs a reward, got none$"):
        make(name, reward=None)
    short.__class__ = type("Short", (Level,), {"__call__": lambda self, f, c=None: RewardOutput(reward=f.flatten(1))})
    for process in accepted(make(name)).values():
        with pytest.raises(ValueError, match=r"the reward Short must return rewards of shape \(\d+,\), got \(\d+, 64\)"):
            sample(make(name, reward=short), process)


@pytest.mark.parametrize("name", NAMES)
def test_a_condition_goes_with_its_sample(name: str) -> None:
    """Each sample is drawn towards its own level, whatever the number of particles and the order of the batch."""
    level = torch.tensor([-3.0, 0.0, 3.0], dtype=torch.float64)
    for process in accepted(make(name)).values():
        x = sample(make(name), process, condition={"level": level})
        turned = sample(make(name), process, (2, 0, 1), condition={"level": level[[2, 0, 1]]})
        torch.testing.assert_close(turned, x[[2, 0, 1]], rtol=1e-9, atol=1e-9)
        assert not torch.allclose(x, sample(make(name), process), atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_is_of_physical_units(name: str) -> None:
    """The reward of x / 2 + 1 with the level 1.2 is a quarter of the reward of x with the level 0.4."""

    class Physical(Level):
        def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
            made = super().__call__(fields - 1.0, condition).reward
            return RewardOutput(reward=4 * made)

    class Model(Level):
        def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
            return RewardOutput(reward=super().__call__(fields - 0.2, condition).reward)

    for process in accepted(make(name)).values():
        physical = sample(make(name, reward=Physical(), normalizer=Normalizer(scale=(2.0,), shift=(-2.0,))), process)
        torch.testing.assert_close(physical, sample(make(name, reward=Model()), process), rtol=1e-9, atol=1e-9)


def test_steps_without_a_search_are_the_policys_own() -> None:
    """With scope tail, so that two denoisers take turns. The steerer asks the policy for the denoiser of each step."""
    base = denoiser()
    policy = Policy(base, scope="tail", switch_sigma=DenoisingProcess(STEPS).sigmas[2])
    policy.load_learned({"w": torch.tensor(0.5)})
    noise = seeding.normal(0, "contract", range(2), SHAPE)
    plain = PlainSteerer(PlainSteerer.Settings(), SteeringContext(policy=policy))
    for solver in ("heun", "euler", "2m"):
        process = DenoisingProcess(STEPS, solver)
        with torch.no_grad():
            assert torch.equal(steer(plain)(process, noise), PolicySampler(policy)(process, noise))


def test_a_steerer_that_draws_needs_the_names_of_its_samples() -> None:
    noise = seeding.normal(0, "contract", range(2), SHAPE)
    for name, process in (("best-of-n", DenoisingProcess(3)), ("svdd", DenoisingProcess(3, "stochastic"))):
        with pytest.raises(ValueError, match=r"this steerer draws noise by sample id: name the samples with sampler.for_batch"):
            steer(make(name))(process, noise)


def test_svdd_refuses_a_deterministic_process_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match="^--steer svdd picks among random proposals: it needs --solver stochastic, got heun$"):
        sample(make("svdd"), DenoisingProcess(3))


def test_unknown_and_incomplete_steerers(monkeypatch: pytest.MonkeyPatch) -> None:
    restored(STEERERS, monkeypatch)
    with pytest.raises(ValueError, match="--steer: unknown steerer 'dps'; known: best-of-n, cocogen, diffusion-pde, svdd"):
        STEERERS.find("dps")

    class Half(PlainSteerer):
        check = start = property()  # type: ignore[assignment]

    register("half")(Half)
    with pytest.raises(
        TypeError, match=r"'half' must be a Steerer \(pirf_ray.steering.base.Steerer\), got Half without check, start"
    ):
        make("half")


# --- a Gaussian law in 64 dimensions, whose exact answers are known (SCIENCE.md 5) ---

GAUSSIAN = 512
"""Samples."""


class LogLikelihood:
    """The problem's reward, without a gradient."""

    differentiable, scope = False, "sample"

    def __call__(self, fields: torch.Tensor, condition: Condition | None = None) -> RewardOutput:
        return RewardOutput(reward=problem().log_likelihood(fields))


def soft_value(process: DenoisingProcess) -> Callable[[torch.Tensor, int], torch.Tensor]:
    """Return ln E[exp(r(x_0)) | x] of the chain: x_0 | x ~ N(D, S), so y | x ~ N(H D, H S H' + s^2), without its constant.

    The chain's last step is x_0 = D instead of a draw. At sigma 0.002 this leaves out a variance of 4e-6, against s^2 = 0.09.
    """
    law, H, y, noise = problem().law, *problem().reward
    modes = law.basis.to_modes(H.reshape(-1, *law.mean.shape)).flatten(1)

    def value(x: torch.Tensor, step: int) -> torch.Tensor:
        sigma = process.sigmas[step]
        misfit = y - law.denoised(x, sigma).flatten(1).double() @ H.mT
        covariance = modes * law.denoised_variance(sigma).flatten() @ modes.mT + noise**2 * torch.eye(len(y))
        return -0.5 * (misfit @ torch.linalg.inv(covariance) * misfit).sum(1)

    return value


def gaussian_samples(
    name: str, settings: Any, process: DenoisingProcess, stream: str = "gaussian", **context: Any
) -> torch.Tensor:
    policy = OneDenoiser(GaussianDenoiser(problem().law))
    steerer = STEERERS.make(name, settings, SteeringContext(policy=policy, reward=LogLikelihood(), **context))
    batch = SampleBatch(seed=0, stream=stream, ids=range(GAUSSIAN))
    with torch.no_grad():
        return steer(steerer).for_batch(batch)(process, seeding.normal(0, stream, batch.ids, SHAPE).float())


def reward_of(x: torch.Tensor) -> tuple[float, float]:
    """Return the mean reward and its standard error."""
    r = problem().log_likelihood(x)
    return r.mean().item(), r.std().item() / len(r) ** 0.5


@pytest.mark.parametrize("solver", ["heun", "stochastic"])
def test_best_of_n_has_the_mean_of_the_largest_of_n_rewards(solver: str) -> None:
    """The largest of n = 8 of 8 x 512 plain rewards is expected at sum_i r_(i) [(i/M)^n - ((i-1)/M)^n], r_(i) sorted.

    Both sides have about the same standard error, so four of them together are 4 sqrt(2) of one. The base law is 7 to 9 below,
    more than 15 standard errors of its own mean (0.35).
    """
    process = problem().process() if solver == "stochastic" else DenoisingProcess(10, solver)
    plain = [gaussian_samples("best-of-n", BestOfNSettings(candidates=1), process, f"plain {i}") for i in range(8)]
    r = problem().log_likelihood(torch.cat(plain)).sort().values
    place = torch.arange(len(r) + 1, dtype=torch.float64) / len(r)
    expected = (r * (place[1:] ** 8 - place[:-1] ** 8)).sum().item()
    mean, error = reward_of(gaussian_samples("best-of-n", BestOfNSettings(candidates=8), process))
    assert mean == pytest.approx(expected, abs=4 * 2**0.5 * error)
    assert mean > r.mean().item() + 5


def test_svdd_raises_the_reward_above_plain_samples() -> None:
    """By most of the 10 that the base law is below 0, at 4 proposals; the standard error of the plain mean is 0.35."""
    process = problem().process()
    plain, error = reward_of(gaussian_samples("best-of-n", BestOfNSettings(candidates=1), process))
    steered, _ = reward_of(gaussian_samples("svdd", SVDDSettings(proposals=4), process))
    assert steered > plain + 10 * error


def test_svdd_with_the_exact_soft_value_approaches_the_tilt() -> None:
    """Errors of mean and covariance fall with m. A perfect law of 512 samples has m = sqrt(tr P / 512) / |m*| = 0.04.

    At m = 64 the mean has at most twice this, and the reward is within four standard errors of its exact expectation.
    """
    process, target = problem().process(), tilt(problem().prior, *problem().reward, 1.0)
    found = {}
    for m in (4, 16, 64):
        settings = SVDDSettings(proposals=m, temperature=1.0)
        x = gaussian_samples("svdd", settings, process, soft_value=soft_value(process))
        found[m] = (*errors(x, target), *reward_of(x))
    floor = (target.covariance.trace() / GAUSSIAN).sqrt().item() / target.mean.norm().item()
    assert found[4][0] > 1.5 * found[16][0] and found[4][0] > 3 * found[64][0]
    assert found[4][1] > 1.5 * found[16][1] and found[4][1] > 2 * found[64][1]
    assert found[64][0] < 2 * floor
    assert found[64][2] == pytest.approx(float(expected_reward(target, *problem().reward)), abs=4 * found[64][3])


def test_svdd_with_the_denoised_reward_does_not_approach_the_tilt() -> None:
    """As SCIENCE.md 5 states: the posterior-mean value is biased, and more proposals follow the bias. The floor is 0.04."""
    process, target = problem().process(), tilt(problem().prior, *problem().reward, 1.0)
    x = gaussian_samples("svdd", SVDDSettings(proposals=64, temperature=1.0), process)
    assert errors(x, target)[0] > 0.12
