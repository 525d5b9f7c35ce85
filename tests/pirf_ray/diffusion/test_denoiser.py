"""EDM's preconditioning, shapes, loading of tensors, and the cut of the gradient."""

import math

import pytest
import torch

from pirf_ray.diffusion.denoiser import Denoiser
from tiny_models import RESOLUTION, tiny_denoiser, tiny_network


class Recorder(torch.nn.Module):
    """Network with F = 1 everywhere that keeps its inputs."""

    def forward(self, x: torch.Tensor, c_noise: torch.Tensor) -> torch.Tensor:
        self.seen = (x, c_noise)
        return torch.ones_like(x)


def noise(samples: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((samples, 1, RESOLUTION, RESOLUTION), dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("sigma", [0.002, 0.5, 80.0])
def test_preconditioning_follows_the_formulas(sigma: float) -> None:
    sd, x = 0.15, noise(2)
    denoiser = Denoiser(tiny_network(), sd)
    denoiser.network = Recorder()
    # D = sd^2/(s^2+sd^2) x + s sd/sqrt(s^2+sd^2) * 1
    expected = x * sd**2 / (sigma**2 + sd**2) + sigma * sd / math.hypot(sigma, sd)
    torch.testing.assert_close(denoiser(x, torch.full((2,), sigma, dtype=torch.float64)), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(denoiser(x, sigma), expected, rtol=1e-12, atol=0)
    scaled, c_noise = denoiser.network.seen
    torch.testing.assert_close(scaled, x / math.hypot(sigma, sd), rtol=1e-12, atol=0)
    torch.testing.assert_close(c_noise, torch.full((2,), math.log(sigma) / 4, dtype=torch.float64))


def test_denoiser_is_the_identity_without_noise_and_forgets_its_input_in_noise() -> None:
    """c_out is about sigma at small sigma. At sigma 1e9 c_skip is 1e-20 and x/sigma 1e-9, so every x gives the same output."""
    denoiser, x = tiny_denoiser(dtype=torch.float64), noise(2)
    torch.testing.assert_close(denoiser(x, 1e-9), x, rtol=0, atol=1e-7)
    torch.testing.assert_close(denoiser(x, 1e9), denoiser(-x, 1e9), rtol=0, atol=1e-7)
    assert denoiser(x, 1e9).std() > 1e-3


def test_each_sample_has_its_own_sigma() -> None:
    denoiser, x = tiny_denoiser(dtype=torch.float64), noise(2)
    both = denoiser(x, torch.tensor([0.1, 3.0], dtype=torch.float64))
    torch.testing.assert_close(both, torch.cat([denoiser(x[:1], 0.1), denoiser(x[1:], 3.0)]), rtol=0, atol=1e-11)


def test_a_denoiser_is_differentiable_in_its_input() -> None:
    denoiser = tiny_denoiser(dtype=torch.float64)
    x = noise(1).requires_grad_()
    assert torch.autograd.gradcheck(lambda y: denoiser(y, 0.3)[..., :2, :2], (x,))


@pytest.mark.parametrize("shape", [(2, 2, 8, 8), (2, 1, 16, 16), (2, 1, 8, 4), (1, 8, 8)])
def test_denoiser_refuses_other_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"expected x \(b, 1, 8, 8\), got \({', '.join(map(str, shape))}\)"):
        tiny_denoiser()(torch.zeros(shape), 1.0)


@pytest.mark.parametrize("sigma_data", [0.0, -1.0, math.nan])
def test_denoiser_refuses_an_impossible_sigma_data(sigma_data: float) -> None:
    with pytest.raises(ValueError, match=f"sigma_data must be positive, got {sigma_data}"):
        Denoiser(tiny_network(), sigma_data)


def test_loaded_tensors_are_the_networks() -> None:
    tensors = tiny_denoiser(seed=1).network.state_dict()
    loaded = tiny_denoiser().load_network(tensors).network.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())


def test_loading_tensors_that_do_not_fit_names_them() -> None:
    tensors = tiny_denoiser().network.state_dict()
    tensors["extra"] = tensors.pop("map_layer0.bias")
    tensors["map_layer1.bias"] = torch.zeros(3)
    with pytest.raises(
        ValueError, match=r"missing: map_layer0\.bias; unknown: extra; wrong shape: map_layer1\.bias \(3,\) instead of \(32,\)"
    ):
        tiny_denoiser().load_network(tensors)


@pytest.mark.parametrize("levels", [1, 2])
def test_truncation_keeps_the_value_and_cuts_the_gradient_below_the_head(levels: int) -> None:
    denoiser, x = tiny_denoiser(dtype=torch.float64), noise(2)
    whole = denoiser(x, 0.3)
    denoiser.truncate_levels = levels
    cut = denoiser(x, 0.3)
    assert torch.equal(cut, whole)
    cut.square().sum().backward()
    learned = {name for name, p in denoiser.network.named_parameters() if p.grad is not None}
    top = tuple(f"dec.{r}x{r}_" for r in denoiser.config.resolutions[:levels])
    assert learned == {name for name, _ in denoiser.network.named_parameters() if name.startswith(top)}
