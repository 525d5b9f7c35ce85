"""Costs of the sampling methods; PG-Diffusion and PIDM: each does what it claims."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.losses.denoising import denoising_loss
from pirf_ray.methods import METHODS, Problem, Settings
from pirf_ray.methods import pg_diffusion as pg_diffusion_module
from pirf_ray.methods import solver_data as solver_data_module
from pirf_ray.methods.pg_diffusion import DROPPED, ConditionedDenoiser, ConditionedSampler, residual_direction
from pirf_ray.methods.pidm import noise_slope
from pirf_ray.methods.solver_data import BATCH, SolverBatches, minimize
from pirf_ray.metrics.cost import Meter
from pirf_ray.steering.cocogen import CorrectedSampler
from pirf_ray.steering.correction import residual_floor
from pirf_ray.steering.diffusion_pde import GuidedSampler
from tiny_models import tiny_denoiser, tiny_info

STEPS = 6


@pytest.fixture(autouse=True)
def few_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(solver_data_module, "FIELDS", 32)


@pytest.fixture
def tiny() -> Problem:
    return Problem(info=tiny_info(), base=tiny_denoiser().requires_grad_(False), num_steps=4)


def noise(problem: Problem, ids: range = range(2)) -> torch.Tensor:
    return seeding.normal(0, "methods", ids, problem.pde.shape).float()


@torch.no_grad()
def sampled(problem: Problem, name: str, settings: Settings, ids: range = range(2), steps: int = STEPS) -> torch.Tensor:
    return METHODS[name].sampler(problem, settings, {})(DenoisingProcess(steps), noise(problem, ids))


@pytest.mark.parametrize(
    ("name", "settings", "forwards", "gradients", "residuals"),
    [
        ("base", {}, 11, 0, 0),
        ("diffusion-pde", {"guidance": 0.1}, 11, 2, 2),  # ceil(.2 * 6) = 2 guided steps
        ("cocogen", {"step": 0.25, "after": 3}, 11, 0, 5),  # one after each of 2 steps, 3 at the end
        ("pg-diffusion", {"scale": 0.0}, 11, 0, 0),
        ("pg-diffusion", {"scale": 1.0}, 11, 0, 11),
        ("pg-diffusion", {"scale": 2.0}, 22, 0, 11),
        ("base-corrected", {}, 11, 0, 20),
    ],
)
def test_costs_are_as_stated(tiny: Problem, name: str, settings: Settings, forwards: int, gradients: int, residuals: int) -> None:
    with Meter() as meter:
        sampled(tiny, name, settings)
    cost = meter.cost.per(2)
    assert (cost.network_forwards, cost.network_gradients, cost.residual_gradients) == (forwards, gradients, residuals)


@pytest.mark.parametrize("steps", [1, STEPS])
def test_steered_methods_are_their_samplers_with_the_problems_residual_and_floor(tiny: Problem, steps: int) -> None:
    """The residual is metered, and is the PDE's default operator's; CoCoGen stops at the floor of exact data."""
    floor = residual_floor(tiny.pde, tiny.pde.default_operator)
    guided = GuidedSampler(tiny.base, tiny.residual, guidance=0.3)
    corrected = CorrectedSampler(tiny.base, tiny.residual, step=0.3, after=2, floor=floor)
    process, start = DenoisingProcess(steps), noise(tiny)
    with torch.no_grad():
        assert torch.equal(sampled(tiny, "diffusion-pde", {"guidance": 0.3}, steps=steps), guided(process, start))
        assert torch.equal(sampled(tiny, "cocogen", {"step": 0.3, "after": 2}, steps=steps), corrected(process, start))


class Flat(Problem):
    """A residual of 1e4 everywhere: no gradient, and so large that it overflows when divided by almost nothing."""

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        return (0 * x).flatten(1).sum(1) + 1e4


def test_a_residual_without_gradient_is_no_condition(tiny: Problem) -> None:
    flat = Flat(info=tiny.info, base=tiny.base)
    x = noise(flat)
    assert torch.equal(residual_direction(flat, x, 1.0), torch.zeros_like(x))


def test_an_untrained_adapter_and_scale_zero_are_the_base(tiny: Problem) -> None:
    base = sampled(tiny, "base", {})
    assert torch.equal(sampled(tiny, "pg-diffusion", {"scale": 0.0}), base)
    for scale in (1.0, 3.0):
        torch.testing.assert_close(sampled(tiny, "pg-diffusion", {"scale": scale}), base, rtol=1e-4, atol=1e-5)


def test_a_trained_adapter_is_the_base_at_scale_zero_only(tiny: Problem) -> None:
    before = {name: tensor.clone() for name, tensor in tiny.base.state_dict().items()}
    weights = METHODS["pg-diffusion"].train(tiny, {"learning_rate": 1e-2, "scale": 1.0}, budget=3 * BATCH * 5, seed=0)
    assert sorted(weights) == ["first.bias", "first.weight", "last.bias", "last.weight"]
    assert all(torch.equal(tensor, before[name]) for name, tensor in tiny.base.state_dict().items())
    base = sampled(tiny, "base", {})
    x = METHODS["pg-diffusion"].sampler(tiny, {"scale": 1.0}, weights)(DenoisingProcess(STEPS), noise(tiny))
    assert not torch.allclose(x, base, atol=1e-4)
    assert torch.equal(METHODS["pg-diffusion"].sampler(tiny, {"scale": 0.0}, weights)(DenoisingProcess(STEPS), noise(tiny)), base)


@pytest.mark.parametrize("sigma", [80.0, 1.0, 0.002])
def test_the_condition_is_finite_and_of_size_one(tiny: Problem, sigma: float) -> None:
    condition = residual_direction(tiny, sigma * noise(tiny), sigma)
    torch.testing.assert_close(condition.square().mean((1, 2, 3)), torch.ones(2))


@pytest.mark.parametrize("sigma", [80.0, 0.3, 0.002])
def test_the_condition_is_taken_at_c_skip_x(tiny: Problem, sigma: float) -> None:
    """Burgers is not linear, so that its gradient's direction depends on where it is taken: sd^2/(sigma^2 + sd^2) x, sd = .14."""
    x = (0.14**2 + sigma**2) ** 0.5 * noise(tiny)
    at = (0.14**2 / (sigma**2 + 0.14**2) * x.double()).requires_grad_(True)
    r = tiny.pde.residual(tiny.pde.normalizer.to_physical(at), "consistent")
    (gradient,) = torch.autograd.grad(r.sum(), at)
    direction = gradient / gradient.square().mean((1, 2, 3), keepdim=True).sqrt()
    torch.testing.assert_close(residual_direction(tiny, x, sigma).double(), direction, rtol=1e-2, atol=1e-3)


def adapted(problem: Problem) -> ConditionedDenoiser:
    """With an adapter whose every tensor is random."""
    denoiser = ConditionedDenoiser(problem)
    with torch.no_grad():
        for index, tensor in enumerate(denoiser.learning().values()):
            tensor.normal_(generator=torch.Generator().manual_seed(index))
    return denoiser


def test_the_scale_moves_the_prediction_from_the_base_past_the_conditioned(tiny: Problem) -> None:
    """D is linear in the scale s, the base at 0 and the conditioned prediction at 1: D(3) - D(1) = 2 (D(1) - D(0))."""
    denoiser, x = adapted(tiny), noise(tiny)
    with torch.no_grad():
        at = {s: ConditionedSampler(tiny, denoiser, s).denoise(x, 1.0) for s in (0.0, 1.0, 3.0)}
        assert torch.equal(at[0.0], tiny.base(x, 1.0)) and torch.equal(at[1.0], denoiser(x, 1.0))
    assert not torch.allclose(at[0.0], at[1.0], atol=1e-3)
    torch.testing.assert_close(at[3.0] - at[1.0], 2 * (at[1.0] - at[0.0]), rtol=1e-3, atol=1e-5)


def test_one_condition_in_ten_is_dropped(tiny: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 updates of 16: .1 with a standard error of sqrt(.1 .9 / 1600) = .0075. Only the adapter is given a gradient."""
    kept = []

    def loss(denoiser: ConditionedDenoiser, *batch: torch.Tensor) -> torch.Tensor:
        kept.append(denoiser.kept)
        assert {id(p) for p in denoiser.parameters() if p.requires_grad} == {id(p) for p in denoiser.learning().values()}
        return sum((p.square().sum() for p in denoiser.learning().values()), torch.zeros(()))

    monkeypatch.setattr(pg_diffusion_module, "denoising_loss", loss)
    METHODS["pg-diffusion"].train(tiny, {"learning_rate": 1e-3}, budget=3 * BATCH * 100, seed=0)
    drawn = torch.stack(kept)
    assert drawn.shape == (100, BATCH) and set(drawn.unique().tolist()) == {0.0, 1.0}
    assert 1 - drawn.mean().item() == pytest.approx(DROPPED, abs=4 * 0.0075) and DROPPED == 0.1


def test_an_adapter_is_a_function_of_its_seed_and_reseeds_nothing(tiny: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "manual_seed", None)
    before = torch.get_rng_state()
    first, again, other = (ConditionedDenoiser(tiny, seed=seed).learning()["first.weight"] for seed in (3, 3, 4))
    assert torch.equal(first, again) and not torch.allclose(first, other)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_dropped_condition_is_none(tiny: Problem) -> None:
    denoiser = ConditionedDenoiser(tiny)
    with torch.no_grad():
        denoiser.adapter.last.weight.normal_(generator=torch.Generator().manual_seed(0))
    denoiser.kept = torch.tensor([1.0, 0.0])
    x = noise(tiny)
    assert not torch.allclose(denoiser(x, 1.0)[0], tiny.base(x, 1.0)[0])
    torch.testing.assert_close(denoiser(x, 1.0)[1], tiny.base(x, 1.0)[1])


def test_batches_of_solver_data_are_functions_of_seed_and_update(tiny: Problem) -> None:
    first, again = SolverBatches(tiny, seed=0), SolverBatches(tiny, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(first[3], again[3], strict=True))
    assert not torch.equal(first[3][0], first[4][0])
    y, sigma, unit = first[0]
    assert y.shape == unit.shape == (BATCH, *tiny.pde.shape) and sigma.shape == (BATCH,)


def test_the_law_of_batches(tiny: Problem) -> None:
    """ln sigma ~ N(-1.2, 1.2^2): of 640 draws the mean has a standard error of .047, the standard deviation one of .034."""
    batches = SolverBatches(tiny, seed=0)
    logs = torch.cat([batches[update][1] for update in range(40)]).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=4 * 0.047) and logs.std().item() == pytest.approx(1.2, abs=4 * 0.034)
    raw = tiny.pde.normalizer.to_model(batches.fields)
    moved = [(raw - y).abs().flatten(1).amax(1).min() > 1e-3 for y in batches[0][0]]
    assert sum(moved) > BATCH // 2  # most symmetries of a field are no other field of the data


def test_what_is_learned_is_an_average_under_a_rate_that_falls_to_zero(tiny: Problem) -> None:
    """Adam on a loss of constant slope takes steps of the rate, 1, 3/4 and 1/4 of it in 3 updates: (1 + cos(pi u/3))/2.

    Averaged with decays 1/10, 2/11, 3/12, from 0 downwards.
    """
    p, average, rate = 0.0, 0.0, 0.01
    for update, decay in enumerate((1 / 10, 2 / 11, 3 / 12)):
        p -= rate * (1 + math.cos(math.pi * update / 3)) / 2
        average += (1 - decay) * (p - average)
    assert p == pytest.approx(-2 * rate)
    learned = torch.nn.Parameter(torch.zeros(()))
    batches = SolverBatches(tiny, seed=0)
    kept = minimize({"p": learned}, lambda batch, update: learned.sum(), batches, updates=3, learning_rate=rate, what="line")
    assert learned.item() == pytest.approx(p, rel=1e-4) and kept["p"].item() == pytest.approx(average, rel=1e-4)


@pytest.mark.parametrize("name", ["pidm-mean", "pidm-sample"])
def test_at_weight_zero_the_loss_is_the_diffusion_loss(tiny: Problem, name: str) -> None:
    batch = SolverBatches(tiny, seed=0)[0]
    gradients = []
    for loss in (
        lambda d: METHODS[name].loss(tiny, d, batch, 0.0, 1.0),  # type: ignore[attr-defined]
        lambda d: denoising_loss(d, *batch),
    ):
        denoiser = tiny_denoiser()
        value = loss(denoiser)
        gradients.append([value.detach(), *torch.autograd.grad(value, list(denoiser.parameters()))])
    for mine, plain in zip(*gradients, strict=True):
        assert torch.equal(mine, plain)


class Gaussian(Denoiser):
    """The exact denoiser of data N(0, sd^2): D(x; s) = sd^2 / (sd^2 + s^2) x."""

    def forward(self, x: torch.Tensor, sigma: torch.Tensor | float) -> torch.Tensor:
        s = torch.as_tensor(sigma, dtype=x.dtype).reshape(-1, 1, 1, 1)
        return self.sigma_data**2 / (self.sigma_data**2 + s**2) * x


def test_the_sampled_estimate_of_gaussian_data(tiny: Problem) -> None:
    """Euler from s to s/2 leaves (x + D)/2 = x (1 + a)/2 with a = sd^2/(sd^2 + s^2); then times b = sd^2/(sd^2 + s^2/4)."""
    denoiser = Gaussian(tiny.base.config, 0.14)
    x, sigma = noise(tiny), torch.tensor([0.1, 2.0])
    s = sigma[:, None, None, None]
    a, b = 0.14**2 / (0.14**2 + s**2), 0.14**2 / (0.14**2 + s**2 / 4)
    estimate = METHODS["pidm-sample"].estimate(denoiser, x, denoiser(x, sigma), sigma)  # type: ignore[attr-defined]
    torch.testing.assert_close(estimate, x * (1 + a) / 2 * b)


@pytest.mark.parametrize("name", ["pidm-mean", "pidm-sample"])
def test_the_residual_term_has_the_gradient_of_finite_differences(tiny: Problem, name: str) -> None:
    """Central differences in float64 along a random direction of the weights: error O(h^2)."""
    problem = replace(tiny, base=tiny_denoiser(dtype=torch.float64))
    batch = tuple(part[:2].double() for part in SolverBatches(tiny, seed=0)[0])
    denoiser = tiny_denoiser(dtype=torch.float64)
    parameters = list(denoiser.parameters())
    generator = torch.Generator().manual_seed(1)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]

    def loss() -> torch.Tensor:
        return METHODS[name].loss(problem, denoiser, batch, 0.7, 1e3)  # type: ignore[attr-defined]

    slope = sum((g * d).sum() for g, d in zip(torch.autograd.grad(loss(), parameters), direction, strict=True))
    values = []
    for h in (1e-6, -1e-6):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += h * d
            values.append(loss())
            for p, d in zip(parameters, direction, strict=True):
                p -= h * d
    torch.testing.assert_close(slope, (values[0] - values[1]) / 2e-6, rtol=1e-4, atol=1e-4)


def test_the_slope_is_what_noise_adds(tiny: Problem) -> None:
    """Mean residual of exact fields with noise e is floor + slope e^2 for small e; probed at twice the probe's noise."""
    pde = tiny.pde
    x = pde.normalizer.to_model(pde.solve(1, "slope", range(64)))
    noisy = x + 2e-3 * seeding.normal(1, "slope noise", range(64), pde.shape)
    means = [pde.residual(pde.normalizer.to_physical(f), "consistent").mean().item() for f in (x, noisy)]
    assert (means[1] - means[0]) / 2e-3**2 == pytest.approx(noise_slope(tiny), rel=0.1)


@pytest.mark.parametrize("name", ["pidm-mean", "pg-diffusion"])
def test_training_on_solver_data_lowers_its_loss_and_is_repeatable(tiny: Problem, name: str) -> None:
    method = METHODS[name]
    settings = {"learning_rate": 3e-3, "weight": 1e-3, "scale": 1.0}
    first, again = (method.train(tiny, settings, budget=3 * BATCH * 30, seed=1) for _ in range(2))
    assert all(torch.equal(first[n], again[n]) for n in first)
    losses = {key: _loss(tiny, name, weights) for key, weights in (("untrained", {}), ("trained", first))}
    assert losses["trained"] < losses["untrained"]


def _loss(problem: Problem, name: str, weights: dict[str, torch.Tensor]) -> float:
    make: dict[str, Callable[[], Denoiser]] = {"pidm-mean": tiny_denoiser, "pg-diffusion": lambda: ConditionedDenoiser(problem)}
    denoiser = make[name]()
    own = denoiser.learning() if isinstance(denoiser, ConditionedDenoiser) else dict(denoiser.network.named_parameters())
    with torch.no_grad():
        for key, tensor in weights.items():
            own[key].copy_(tensor)
        return sum(denoising_loss(denoiser, *SolverBatches(problem, seed=9)[u]).item() for u in range(4))


def test_a_loss_that_is_not_finite_ends_the_training(tiny: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(type(METHODS["pidm-mean"]), "loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(FloatingPointError, match="pidm-mean: the loss of update 0 is nan"):
        METHODS["pidm-mean"].train(tiny, {"learning_rate": 1e-3, "weight": 1.0}, budget=1e3, seed=0)
    with pytest.raises(ValueError, match=r"--budget 1 pays for no update of pidm-mean: one costs 48"):
        METHODS["pidm-mean"].train(tiny, {"learning_rate": 1e-3, "weight": 1.0}, budget=1, seed=0)


def test_a_negative_weight_is_refused(tiny: Problem) -> None:
    with pytest.raises(ValueError, match="weight must not be negative, got -1"):
        METHODS["pidm-mean"].loss(tiny, tiny.base, SolverBatches(tiny, seed=0)[0], -1.0, 1.0)  # type: ignore[attr-defined]
