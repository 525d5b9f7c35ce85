"""DiffusionPDE's guidance and CoCoGen's corrections: each does what it claims, to each sample alone."""

import pytest
import torch

from envs.common.checks import ConfigError
from envs.denoising import DenoisingProcess, State
from envs.numerics import seeding
from envs.pdes import PDE
from envs.rewards.base import RewardOutput
from pirf_ray import zoo
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.networks import UNet
from pirf_ray.diffusion.sampling import advance, finish
from pirf_ray.steering import STEERERS, OneDenoiser, SteeringContext, steer
from pirf_ray.steering.cocogen import CoCoGen, CoCoGenSettings
from pirf_ray.steering.correction import residual_floor
from pirf_ray.steering.diffusion_pde import DiffusionPDE, DiffusionPDESettings, first_guided
from tiny_models import tiny_denoiser, tiny_info

STEPS = 6


class Subject:
    """A base model with the residual of its PDE."""

    def __init__(self, pde: PDE, denoiser: Denoiser) -> None:
        self.pde, self.denoiser = pde, denoiser.requires_grad_(False)

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        """Return the residual (b,) of x in model units."""
        return self.pde.residual(self.pde.normalizer.to_physical(x), self.pde.default_operator)

    def noise(self, ids: range = range(2)) -> torch.Tensor:
        """Return noise of some samples."""
        return seeding.normal(0, "methods", ids, self.pde.shape).float()

    @torch.no_grad()
    def base(self, steps: int = STEPS) -> torch.Tensor:
        """Return the base model's samples."""
        process = DenoisingProcess(steps)
        return finish(process, lambda sigma: self.denoiser, process.initial(self.noise()))

    @torch.no_grad()
    def guided(self, guidance: float, ids: range = range(2), steps: int = STEPS) -> torch.Tensor:
        """Return samples with guidance."""
        steerer = DiffusionPDE(DiffusionPDESettings(guidance=guidance), self.context())
        return steer(steerer)(DenoisingProcess(steps), self.noise(ids))

    def corrected(self, step: float, after: int) -> CoCoGen:
        """Return the steerer with corrections down to the floor of exact data."""
        floor = residual_floor(self.pde, self.pde.default_operator)
        return CoCoGen(CoCoGenSettings(step=step, after=after), self.context(floor))

    def context(self, floor: float = 0.0) -> SteeringContext:
        """Return what steerers are given."""
        return SteeringContext(policy=OneDenoiser(self.denoiser), residual=self.residual, floor=floor)


class Flat(Subject):
    """A residual of 1e4 everywhere: no gradient, and so large that it overflows when divided by almost nothing."""

    def residual(self, x: torch.Tensor) -> torch.Tensor:
        return (0 * x).flatten(1).sum(1) + 1e4


@pytest.fixture(scope="module")
def poisson() -> Subject:
    info, denoiser = checkpoints.load_denoiser(zoo.find("Poisson-v0", 32))
    return Subject(info.pde(), denoiser)


@pytest.fixture
def tiny() -> Subject:
    return Subject(tiny_info().pde(), tiny_denoiser())


# --- guidance ---


@pytest.mark.parametrize(("steps", "first"), [(20, 16), (40, 32), (10, 8), (5, 4), (3, 2)])
def test_the_guided_part_is_the_last_fifth(steps: int, first: int) -> None:
    assert first_guided(steps) == first


def test_guidance_lowers_the_residual_of_each_sample(poisson: Subject) -> None:
    assert (poisson.residual(poisson.guided(1.0)) < 0.9 * poisson.residual(poisson.guided(0.0))).all()


def test_no_guidance_is_the_base_bit_for_bit(poisson: Subject) -> None:
    assert torch.equal(poisson.guided(0.0), poisson.base())
    with pytest.raises(ConfigError, match="--guidance must not be negative, got -1"):
        poisson.guided(-1)


def test_the_norm_is_each_samples_own(poisson: Subject) -> None:
    together, alone = poisson.guided(0.5), poisson.guided(0.5, range(1, 2))
    torch.testing.assert_close(together[1:], alone, rtol=1e-3, atol=1e-4)


def test_one_guided_step_by_hand(tiny: Subject) -> None:
    """N = 1: x_0 = D(x; sigma), then down the gradient of its root mean square residual by guidance rho / ||grad rho||^2."""
    process = DenoisingProcess(1)
    x = process.initial(tiny.noise()).x.requires_grad_(True)
    denoised = tiny.denoiser(x, process.sigmas[0])
    rho = tiny.pde.residual(tiny.pde.normalizer.to_physical(denoised), "consistent").sqrt()
    (gradient,) = torch.autograd.grad(rho.sum(), x)
    size = 0.3 * rho.detach() / gradient.square().flatten(1).sum(1)
    expected = denoised.detach() - size[:, None, None, None] * gradient
    torch.testing.assert_close(tiny.guided(0.3, steps=1), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_guided_steps_are_steps_followed_by_a_move(tiny: Subject, solver: str) -> None:
    """The steps written out. N = 6 has two guided steps; each differentiates the evaluation with which it begins."""
    process = DenoisingProcess(STEPS, solver)
    state = advance(process, lambda sigma: tiny.denoiser, process.initial(tiny.noise()), 4)
    for step in (4, 5):
        x = state.x.detach().requires_grad_(True)
        rho = tiny.residual(tiny.denoiser(x, process.sigmas[step])).sqrt()
        (gradient,) = torch.autograd.grad(rho.sum(), x)
        state = advance(process, lambda sigma: tiny.denoiser, State(x=x.detach(), step=step), step + 1)
        size = 0.3 * rho.detach() / gradient.square().flatten(1).sum(1)
        state = State(x=state.x.detach() - size[:, None, None, None] * gradient, step=step + 1)
    steerer = DiffusionPDE(DiffusionPDESettings(guidance=0.3), tiny.context())
    torch.testing.assert_close(steer(steerer)(process, tiny.noise()).detach(), state.x, rtol=1e-4, atol=1e-4)


# --- corrections while sampling ---


def test_corrections_lower_the_residual_without_the_network(poisson: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    x = poisson.base()
    monkeypatch.setattr(UNet, "forward", None)
    assert (poisson.residual(poisson.corrected(0.25, 5).correct(x, 5)) < 0.6 * poisson.residual(x)).all()


def test_one_correction_by_hand(poisson: Subject) -> None:
    x = poisson.base().requires_grad_(True)
    r = poisson.pde.residual(poisson.pde.normalizer.to_physical(x), "consistent")
    (g,) = torch.autograd.grad(r.sum(), x)
    expected = x - (0.5 * r / g.square().flatten(1).sum(1))[:, None, None, None] * g
    torch.testing.assert_close(poisson.corrected(0.5, 0).correct(x.detach(), 1), expected.detach())


def test_exact_data_are_left_alone(poisson: Subject) -> None:
    """At and under the floor, the mean of such data in float32, there is nothing to gain."""
    x = poisson.pde.normalizer.to_model(poisson.pde.solve(0, "exact", range(8))).float()
    steerer = poisson.corrected(0.5, 3)
    under = poisson.residual(x) <= steerer.context.floor
    assert under.any()
    assert torch.equal(steerer.correct(x, 3)[under], x[under])


def test_a_sample_without_gradient_stays(tiny: Subject) -> None:
    flat = Flat(tiny.pde, tiny.denoiser)
    x = flat.noise()
    assert torch.equal(flat.corrected(0.5, 0).correct(x, 2), x)
    assert torch.equal(flat.guided(1.0), tiny.base())


@torch.no_grad()
@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_corrections_come_after_each_of_the_last_steps_and_at_the_end(tiny: Subject, solver: str) -> None:
    """The steps written out: N = 6 has two corrected steps, and 3 corrections follow the last."""
    process, steerer = DenoisingProcess(STEPS, solver), tiny.corrected(0.5, 3)
    state = process.initial(tiny.noise())
    for step in range(STEPS):
        state = advance(process, lambda sigma: tiny.denoiser, state, step + 1)
        if step >= 4:
            state = State(x=steerer.correct(state.x, 1), step=state.step)
    assert torch.equal(steer(steerer)(process, tiny.noise()), steerer.correct(state.x, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step": 0.0}, r"--step must be in \(0, 1\], got 0.0"),
        ({"step": 1.5}, r"--step must be in \(0, 1\], got 1.5"),
        ({"after": -1}, "--after must not be negative, got -1"),
    ],
)
def test_settings_of_corrections_are_checked(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CoCoGenSettings(**settings)


# --- guidance by a reward ---


class Misfit:
    """Reward -mean (field - 1)^2 in physical units."""

    differentiable, scope = True, "sample"

    def __init__(self, sign: float = 1.0) -> None:
        self.sign = sign

    def __call__(self, fields: torch.Tensor, condition: object = None) -> RewardOutput:
        return RewardOutput(reward=-self.sign * (fields - 1).square().flatten(1).mean(1))


@pytest.mark.parametrize("name", ["diffusion-pde", "cocogen"])
def test_a_reward_guides_as_the_residual_that_is_minus_the_reward(tiny: Subject, name: str) -> None:
    to_physical = tiny.pde.normalizer.to_physical
    by_reward = SteeringContext(policy=OneDenoiser(tiny.denoiser), reward=Misfit(), normalizer=tiny.pde.normalizer)
    by_residual = SteeringContext(policy=OneDenoiser(tiny.denoiser), residual=lambda x: -Misfit()(to_physical(x)).reward)
    made = []
    for context in (by_reward, by_residual):
        with torch.no_grad():
            made.append(steer(STEERERS.make(name, None, context))(DenoisingProcess(STEPS), tiny.noise()))
    assert torch.equal(*made)
    assert not torch.equal(made[0], tiny.base())


@pytest.mark.parametrize("name", ["diffusion-pde", "cocogen"])
def test_a_positive_reward_cannot_guide(tiny: Subject, name: str) -> None:
    context = SteeringContext(policy=OneDenoiser(tiny.denoiser), reward=Misfit(-1.0))
    with pytest.raises(ValueError, match=r"guidance raises a reward to 0, and the reward Misfit is [0-9.]+; give a residual"):
        steer(STEERERS.make(name, None, context))(DenoisingProcess(STEPS), tiny.noise())
