"""DiffusionPDE's guidance and CoCoGen's corrections: each does what it claims, to each sample alone."""

import pytest
import torch

from envs.denoising import DenoisingProcess
from envs.numerics import seeding
from envs.pdes import PDE
from pirf_ray import zoo
from pirf_ray.diffusion import checkpoints
from pirf_ray.diffusion.denoiser import Denoiser
from pirf_ray.diffusion.networks import UNet
from pirf_ray.diffusion.sampling import finish
from pirf_ray.steering.cocogen import CorrectedSampler
from pirf_ray.steering.correction import residual_floor
from pirf_ray.steering.diffusion_pde import GuidedSampler, first_guided
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
        return GuidedSampler(self.denoiser, self.residual, guidance=guidance)(DenoisingProcess(steps), self.noise(ids))

    def corrected(self, step: float, after: int) -> CorrectedSampler:
        """Return the sampler with corrections down to the floor of exact data."""
        floor = residual_floor(self.pde, self.pde.default_operator)
        return CorrectedSampler(self.denoiser, self.residual, step=step, after=after, floor=floor)


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
    with pytest.raises(ValueError, match="guidance must not be negative, got -1"):
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
    sampler = poisson.corrected(0.5, 3)
    under = poisson.residual(x) <= sampler.floor
    assert under.any()
    assert torch.equal(sampler.correct(x, 3)[under], x[under])


def test_a_sample_without_gradient_stays(tiny: Subject) -> None:
    flat = Flat(tiny.pde, tiny.denoiser)
    x = flat.noise()
    assert torch.equal(flat.corrected(0.5, 0).correct(x, 2), x)
    assert torch.equal(flat.guided(1.0), tiny.base())


@pytest.mark.parametrize(("step", "after"), [(0.0, 1), (1.5, 1), (0.5, -1)])
def test_settings_of_corrections_are_checked(tiny: Subject, step: float, after: int) -> None:
    with pytest.raises(ValueError, match=r"step must be in \(0, 1\] and after not negative"):
        tiny.corrected(step, after)
