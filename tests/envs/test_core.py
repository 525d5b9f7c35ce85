"""Seeding, grids, normalization, schedules, sampler steps, spectral helpers, and the layering of the packages."""

import ast
import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from envs.numerics import seeding
from envs.numerics.grids import Axis, Grid
from envs.numerics.normalization import Normalizer
from envs.numerics.operators import central_difference_replicate, spectral_derivative, wavenumbers, zero_pad_spectrum
from envs.schedules import karras_schedule
from envs.transitions import euler_step, heun_step, slope
from places import ROOT

# --- seeding ---


@pytest.mark.parametrize("size", [1, 3, 4, 10, 99])
def test_noise_has_the_same_bits_however_it_is_batched(size):
    whole = seeding.normal(7, "noise", range(10), (2, 3))
    parts = [seeding.normal(7, "noise", ids, (2, 3)) for ids in seeding.chunks(10, size)]
    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(seeding.normal(7, "noise", [9, 0, 4], (2, 3)), whole[[9, 0, 4]])


def test_noise_is_standard_normal_and_float64():
    noise = seeding.normal(0, "law", range(2000), (10,))
    assert noise.dtype == torch.float64 and noise.shape == (2000, 10)
    # 20,000 draws: standard errors 1/sqrt(20000) = .0071 of the mean, .005 of the std; 5 of them
    assert abs(noise.mean().item()) < 0.036 and abs(noise.std().item() - 1) < 0.025


@pytest.mark.parametrize("other", [(7, "b", 0), (8, "a", 0), (7, "a", 1), (7, "a", 2**62)])
def test_another_seed_stream_or_sample_is_other_noise(other):
    first = seeding.generator(7, "a", 0).standard_normal(2000)
    second = seeding.generator(*other).standard_normal(2000)
    assert abs(np.corrcoef(first, second)[0, 1]) < 5 / math.sqrt(2000)


def test_samples_are_2_to_the_192_draws_apart():
    counters = [seeding.generator(1, "a", i).bit_generator.state["state"]["counter"].tolist() for i in (0, 1, 5)]
    assert counters == [[0, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 5]]  # little-endian words of a 256-bit counter


def test_drawing_leaves_the_global_generators_alone():
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.randn(3), np.random.rand(3)
    torch.manual_seed(0)
    np.random.seed(0)
    seeding.normal(3, "a", range(4), (5,))
    assert torch.equal(torch.randn(3), expected[0]) and (np.random.rand(3) == expected[1]).all()


@pytest.mark.parametrize(
    ("seed", "sample", "named"), [(-1, 0, "seed"), (2**63, 0, "seed"), (0, -1, "sample id"), (0, 2**63, "sample id")]
)
def test_seeds_and_sample_ids_out_of_range_are_refused(seed, sample, named):
    with pytest.raises(ValueError, match=f"{named} must be in .*got {seed or sample}"):
        seeding.generator(seed, "a", sample)


def test_no_samples_are_an_empty_batch():
    assert seeding.normal(0, "a", [], (2, 3)).shape == (0, 2, 3)


@pytest.mark.parametrize(("total", "size", "cut"), [(7, 3, [3, 3, 1]), (6, 3, [3, 3]), (2, 5, [2]), (0, 5, [])])
def test_chunks_cover_the_range_in_order(total, size, cut):
    parts = list(seeding.chunks(total, size))
    assert [len(p) for p in parts] == cut
    assert [i for p in parts for i in p] == list(range(total))


# --- grids and normalization ---


@pytest.mark.parametrize(
    ("layout", "spacing", "first", "last"), [("periodic", 0.5, 0.0, 1.5), ("vertex", 2 / 3, 0.0, 2.0), ("cell", 0.5, 0.25, 1.75)]
)
def test_axis_spacing_and_coordinates(layout, spacing, first, last):
    axis = Axis(name="x", extent=2.0, size=4, layout=layout)
    assert axis.spacing == pytest.approx(spacing)
    assert axis.coordinates[[0, -1]] == pytest.approx([first, last])
    assert np.diff(axis.coordinates) == pytest.approx(np.full(3, spacing))


def test_grid_lists_rows_first():
    rows = Axis(name="t", extent=1.0, size=5, layout="vertex")
    grid = Grid(rows=rows, columns=Axis(name="x", extent=1.0, size=8, layout="periodic"))
    assert (grid.shape, grid.spacing, grid.periodic) == ((5, 8), (0.25, 0.125), (False, True))


@pytest.mark.parametrize(
    ("extent", "size", "got"), [(1.0, 1, "got 1"), (0.0, 4, "got 0"), (-1.0, 4, "got -1"), (math.nan, 4, "nan")]
)
def test_degenerate_axes_are_refused(extent, size, got):
    with pytest.raises(ValueError, match=f"axis 'y'.*{got}"):
        Axis(name="y", extent=extent, size=size, layout="cell")


def test_normalizer_maps_each_channel_and_back():
    normalizer = Normalizer(scale=(0.2, 115.0), shift=(-1.5, -0.9))
    fields = torch.tensor([12.0, 0.01], dtype=torch.float64)[None, :, None, None].expand(3, 2, 4, 5)
    model = normalizer.to_model(fields)
    assert model[0, :, 0, 0].tolist() == pytest.approx([0.9, 0.25])  # .2 * 12 - 1.5, 115 * .01 - .9
    torch.testing.assert_close(normalizer.to_physical(model), fields, rtol=1e-13, atol=0)
    assert normalizer.to_model(fields.float()).dtype == torch.float32


def test_normalizer_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="scale has 2 channels, shift has 1"):
        Normalizer(scale=(1.0, 2.0), shift=(0.0,))
    with pytest.raises(ValueError, match="must not contain 0"):
        Normalizer(scale=(0.0,), shift=(0.0,))
    with pytest.raises(ValueError, match=r"expected 1 channels, got .*\(2, 3, 3\)"):
        Normalizer(scale=(1.0,), shift=(0.0,)).to_model(torch.zeros(2, 3, 3))


# --- schedules ---


@pytest.mark.parametrize(
    ("steps", "options", "sigmas"),
    [
        (1, {}, [80, 0]),
        (2, {}, [80, 0.002, 0]),
        (3, {"sigma_min": 1, "sigma_max": 3, "rho": 1}, [3, 2, 1, 0]),  # rho 1: linear
        (3, {"sigma_min": 1, "sigma_max": 9, "rho": 2}, [9, 4, 1, 0]),  # squares of 3, 2, 1
        (3, {"sigma_min": 1, "sigma_max": 128, "rho": 7}, [128, 1.5**7, 1, 0]),  # 7th powers of 2, 1.5, 1
    ],
)
def test_karras_schedule_golden_values(steps, options, sigmas):
    assert karras_schedule(steps, **options).tolist() == pytest.approx(sigmas, rel=1e-12)


def test_the_last_two_steps_of_twenty_start_at_the_documented_sigmas():
    # 80^(1/7) = 1.870187, .002^(1/7) = .411587; (.411587 + 1.458600/19)^7 = .488356^7 = .006624
    sigmas = karras_schedule(20)
    assert sigmas.dtype == torch.float64 and sigmas.shape == (21,)
    assert (sigmas.diff() < 0).all()
    assert sigmas[[18, 19, 20]].tolist() == pytest.approx([0.006624, 0.002, 0], rel=1e-3)


@pytest.mark.parametrize(
    ("steps", "options", "message"),
    [
        (0, {}, "num_steps must be at least 1, got 0"),
        (5, {"sigma_min": 0.0}, "got 0.0 and 80.0"),
        (5, {"sigma_min": 2.0, "sigma_max": 1.0}, "got 2.0 and 1.0"),
    ],
)
def test_impossible_schedules_are_refused(steps, options, message):
    with pytest.raises(ValueError, match=message):
        karras_schedule(steps, **options)


# --- sampler steps ---

SIGMA_DATA = 0.5


def gaussian_denoiser(x, sigma):
    """Exact denoiser of data N(0, sd^2): the ODE's solution is x(s) = x(S) sqrt((s^2 + sd^2)/(S^2 + sd^2))."""
    return x * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)


def integrate(x, sigmas, heun):
    for sigma, following in itertools.pairwise(sigmas):
        here = slope(x, gaussian_denoiser(x, sigma), sigma)
        predicted = euler_step(x, here, sigma, following)
        if heun:
            there = slope(predicted, gaussian_denoiser(predicted, following), following)
            x = heun_step(x, here, there, sigma, following)
        else:
            x = predicted
    return x


@pytest.mark.parametrize(("heun", "order"), [(False, 1), (True, 2)])
def test_sampler_step_has_its_order_on_gaussian_data(heun, order):
    start = torch.tensor([[[[3.0, -1.0]]]], dtype=torch.float64)
    truth = start * math.sqrt((0.1**2 + SIGMA_DATA**2) / (10**2 + SIGMA_DATA**2))
    counts = np.array([40, 80, 160, 320])
    errors = []
    for count in counts:
        sigmas = karras_schedule(int(count) + 1, sigma_min=0.1, sigma_max=10.0)[:-1].tolist()
        errors.append((integrate(start, sigmas, heun) - truth).abs().max().item())
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] == pytest.approx(order, abs=0.12)


def test_last_euler_step_returns_the_denoised_prediction():
    x, denoised = torch.randn(2, 1, 3, 3, dtype=torch.float64), torch.randn(2, 1, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(euler_step(x, slope(x, denoised, 0.002), 0.002, 0.0), denoised, rtol=0, atol=1e-13)


@pytest.mark.parametrize("heun", [False, True])
def test_sampler_steps_are_differentiable(heun):
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: integrate(v, [2.0, 1.0, 0.3], heun), x)


# --- spectral and difference operators ---


@pytest.mark.parametrize("size", [7, 8])
@pytest.mark.parametrize("padded", [9, 16, 32])
def test_zero_padding_keeps_every_grid_value(size, padded):
    u = torch.randn(3, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    fine = torch.fft.irfft(zero_pad_spectrum(torch.fft.rfft(u), size, padded), n=padded)
    if padded % size == 0:
        torch.testing.assert_close(fine[:, :: padded // size], u, rtol=0, atol=1e-13)
    torch.testing.assert_close(fine.mean(-1), u.mean(-1), rtol=0, atol=1e-13)


def test_zero_padding_keeps_the_nyquist_mode():
    u = (-1.0) ** torch.arange(8, dtype=torch.float64)
    fine = torch.fft.irfft(zero_pad_spectrum(torch.fft.rfft(u), 8, 32), n=32)
    torch.testing.assert_close(fine, torch.cos(torch.pi * torch.arange(32, dtype=torch.float64) / 4), rtol=0, atol=1e-13)


@pytest.mark.parametrize("padded", [4, 8])
def test_padding_to_no_more_points_is_refused(padded):
    with pytest.raises(ValueError, match=f"must exceed 8, got {padded}"):
        zero_pad_spectrum(torch.zeros(5, dtype=torch.complex128), 8, padded)


@pytest.mark.parametrize("size", [15, 16])
@pytest.mark.parametrize("k", [1, 3, 6])
@pytest.mark.parametrize("extent", [1.0, 2 * math.pi])
def test_spectral_derivative_is_exact_on_sines(size, k, extent):
    w = 2 * math.pi * k / extent
    x = torch.arange(size, dtype=torch.float64) * extent / size
    torch.testing.assert_close(spectral_derivative(torch.sin(w * x), extent), w * torch.cos(w * x), rtol=0, atol=1e-11)
    second = spectral_derivative(torch.sin(w * x), extent, order=2)
    torch.testing.assert_close(second, -(w**2) * torch.sin(w * x), rtol=0, atol=1e-9)


def test_nyquist_mode_has_a_second_but_no_first_derivative():
    u = (-1.0) ** torch.arange(8, dtype=torch.float64)
    torch.testing.assert_close(spectral_derivative(u, 1.0), torch.zeros(8, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(spectral_derivative(u, 1.0, order=2), -((8 * math.pi) ** 2) * u, rtol=1e-12, atol=0)


def test_wavenumbers_are_angular():
    assert wavenumbers(4, 0.5, torch.zeros(1)).tolist() == pytest.approx([0, 4 * math.pi, 8 * math.pi])


@pytest.mark.parametrize("dim", [-1, -2])
def test_central_difference_replicates_its_edges(dim):
    # squares 0 1 4 9, h = 1/2: (u_{i+1} - u_{i-1}) / 1 with the end values repeated
    line = torch.tensor([0.0, 1.0, 4.0, 9.0])
    u = (line if dim == -1 else line[:, None]).expand(1, 1, 4, 4)
    assert central_difference_replicate(u, 0.5, dim).movedim(dim, -1)[0, 0, 0].tolist() == [1, 4, 8, 5]


# --- imports ---


def test_importing_envs_loads_neither_ray_nor_matplotlib():
    code = "import sys, envs, envs.pdes; print(sorted({'ray', 'matplotlib', 'pirf_ray', 'tune'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.strip() == "[]"
