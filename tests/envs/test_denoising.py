"""The denoising process: its states, its number of network evaluations, its solvers, starts and inversion."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch

from envs.denoising import DenoisingProcess, State, gaussian_start
from envs.numerics.gaussian import GaussianLaw, cosine_basis
from envs.transitions import euler_step, heun_step, slope

SIGMA_DATA = 0.5
COUNTS = np.array([40, 80, 160, 320])
"""Numbers of steps from which an order is regressed."""
LAW = GaussianLaw(
    mean=torch.linspace(-0.4, 0.6, 16, dtype=torch.float64).reshape(1, 4, 4),
    variance=torch.logspace(-1, 0.6, 16, dtype=torch.float64).reshape(1, 4, 4),
    basis=cosine_basis(4, 4),
)
"""A law with variances from .1 to 4."""


def noise() -> torch.Tensor:
    return torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Exact denoiser of data N(0, sigma_data^2)."""
    return x * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)


def law_denoiser(step_sigma: float) -> Callable[[torch.Tensor, float], torch.Tensor]:
    return LAW.denoised


def flow(x: torch.Tensor, sigma: float, sigma_end: float) -> torch.Tensor:
    """Exact solution of the probability-flow ODE of LAW: each mode is scaled by sqrt((C + s'^2)/(C + s^2))."""
    ratio = ((LAW.variance + sigma_end**2) / (LAW.variance + sigma**2)).sqrt()
    return LAW.mean + LAW.basis.to_fields(LAW.basis.to_modes(x - LAW.mean) * ratio)


def advance(process: DenoisingProcess, state: State, stop_step: int) -> State:
    """Return the state at the start of a step, with the exact denoiser of LAW."""
    while state.step < stop_step:
        state = process.transition(state, LAW.denoised(*process.observe(state)))
    return state


def order(error: Callable[[int], float]) -> float:
    """Return the order by which an error falls with the number of steps."""
    return float(-np.polyfit(np.log(COUNTS), np.log([error(int(count)) for count in COUNTS]), 1)[0])


def run(process: DenoisingProcess) -> tuple[torch.Tensor, list[float]]:
    """Return the finished samples and the sigma of each network evaluation."""
    state, sigmas = process.initial(noise()), []
    while not process.terminal(state):
        x, sigma = process.observe(state)
        sigmas.append(sigma)
        state = process.transition(state, denoise(x, sigma))
    x, sigma = process.observe(state)
    assert sigma == 0 and state.slope is None
    return x, sigmas


def test_the_first_state_is_noise_of_standard_deviation_sigma_max() -> None:
    state = DenoisingProcess(3).initial(noise())
    torch.testing.assert_close(state.x, 80 * noise())
    assert state.step == 0 and state.slope is None


@pytest.mark.parametrize("num_steps", [1, 2, 7])
def test_an_episode_has_n_evaluations_with_euler_and_2n_minus_1_with_heun(num_steps: int) -> None:
    euler, heun = DenoisingProcess(num_steps, "euler"), DenoisingProcess(num_steps, "heun")
    assert run(euler)[1] == euler.sigmas[:-1]
    # the predictor at each sigma but the first is followed by the next step's own evaluation at the same sigma
    assert run(heun)[1] == [s for i, s in enumerate(heun.sigmas[:-1]) for _ in range(1 if i == 0 else 2)]
    assert (euler.num_evaluations, heun.num_evaluations) == (num_steps, 2 * num_steps - 1)
    assert [heun.evaluations_from(i) for i in range(num_steps + 1)] == [2 * (num_steps - i) - 1 for i in range(num_steps)] + [0]
    assert [euler.evaluations_from(i) for i in range(num_steps + 1)] == [num_steps - i for i in range(num_steps + 1)]


def test_an_episode_composes_the_sampler_steps() -> None:
    """N = 2: a Heun step from 80 to .002, then Euler's step to 0, which returns the denoised prediction."""
    x = 80 * noise()
    here = slope(x, denoise(x, 80.0), 80.0)
    predicted = euler_step(x, here, 80.0, 0.002)
    middle = heun_step(x, here, slope(predicted, denoise(predicted, 0.002), 0.002), 80.0, 0.002)
    torch.testing.assert_close(run(DenoisingProcess(2))[0], denoise(middle, 0.002), rtol=1e-9, atol=0)


def test_the_slope_is_kept_between_predictor_and_corrector_only() -> None:
    process = DenoisingProcess(3)
    first = process.initial(noise())
    between = process.transition(first, denoise(first.x, 80.0))
    assert between.step == 0 and between.slope is not None and torch.equal(between.x, first.x)
    after = process.transition(between, denoise(*process.observe(between)))
    assert after.step == 1 and after.slope is None


def test_a_finished_episode_and_an_unknown_solver_are_refused() -> None:
    process = DenoisingProcess(3)
    with pytest.raises(ValueError, match="the episode is over after 3 steps; reset first"):
        process.transition(State(x=noise(), step=3), noise())
    with pytest.raises(ValueError, match=r"unknown solver 'rk4'; known: \['2m', 'euler', 'heun', 'stochastic'\]"):
        DenoisingProcess(3, "rk4")
    for eta in (0.0, 1.1):
        with pytest.raises(ValueError, match=rf"eta must be in \(0, 1\], got {eta}"):
            DenoisingProcess(3, "stochastic", eta=eta)


@pytest.mark.parametrize(("solver", "expected"), [("euler", 1), ("heun", 2), ("2m", 2)])
def test_solvers_have_their_order_on_a_gaussian_law(solver: str, expected: int) -> None:
    """Error at sigma = .1 against the exact flow from sigma = 10, over 40 to 320 steps.

    With errors h^p (a + b h), b < 3 a, the regressed order is off by at most (1/40 - 1/320) 3 / ln 8 = .03; .1 leaves room.
    """

    def error(count: int) -> float:
        process = DenoisingProcess(count + 1, solver, sigma_min=0.1, sigma_max=10.0)
        state = advance(process, process.initial(noise()), count)
        return (state.x - flow(10 * noise(), 10.0, 0.1)).abs().max().item()

    assert order(error) == pytest.approx(expected, abs=0.1)


def test_2m_without_its_history_is_of_first_order() -> None:
    """So the history is what makes the order 2."""

    def error(count: int) -> float:
        process = DenoisingProcess(count + 1, "2m", sigma_min=0.1, sigma_max=10.0)
        state = process.initial(noise())
        while state.step < count:
            state = advance(process, dataclasses.replace(state, previous=None), state.step + 1)
        return (state.x - flow(10 * noise(), 10.0, 0.1)).abs().max().item()

    assert order(error) == pytest.approx(1, abs=0.1)


def test_the_state_of_2m_holds_the_last_prediction() -> None:
    """The first step has no history and is Euler's. The last step is x = D and leaves none."""
    process = DenoisingProcess(3, "2m")
    first = process.initial(noise())
    denoised = LAW.denoised(first.x, 80.0)
    second = process.transition(first, denoised)
    assert first.previous is None and second.previous is denoised and second.slope is None
    euler = DenoisingProcess(3, "euler").transition(first, denoised)
    torch.testing.assert_close(second.x, euler.x, rtol=0, atol=0)
    third = advance(process, second, 2)
    last = LAW.denoised(*process.observe(third))
    end = process.transition(third, last)
    torch.testing.assert_close(end.x, last)
    assert end.previous is None and process.terminal(end)


def test_only_stochastic_steps_above_sigma_0_have_a_density() -> None:
    process = DenoisingProcess(4, "stochastic")
    assert [process.has_density(step) for step in range(5)] == [True, True, True, False, False]
    assert not any(DenoisingProcess(4, solver).has_density(0) for solver in ("heun", "euler", "2m"))
    state = State(x=noise(), step=3)
    end = process.transition(state, torch.ones_like(state.x))
    torch.testing.assert_close(end.x, torch.ones_like(state.x), rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="step 3 of the solver stochastic is deterministic and has no density"):
        process.step_law(state, state.x)
    with pytest.raises(ValueError, match="a stochastic step needs noise"):
        process.transition(process.initial(noise()), noise())


def mode_variances(process: DenoisingProcess, start: torch.Tensor) -> torch.Tensor:
    """Return the variance (1, 4, 4) of each mode of the finished samples, without sampling.

    A mode moves by v' = a v + b n with the exact denoiser of LAW. The factors are read off two steps of the process: a from a
    state with every mode 1 and no noise, b from the state at the mean with the noise 1 in every mode.
    """
    ones, mean = torch.ones(1, 1, 4, 4, dtype=torch.float64), LAW.mean[None]
    white, variance = LAW.basis.to_fields(ones), start
    for step in range(process.num_steps):
        moved = State(x=mean + white, step=step)
        still = State(x=mean, step=step)
        sigma, none = process.sigmas[step], torch.zeros_like(white)
        a = LAW.basis.to_modes(process.transition(moved, LAW.denoised(moved.x, sigma), none).x - mean)
        # a law's noise is given per mode, plain noise per cell: white in every basis, with a variance of its own
        unit = ones if process.law else white
        b = LAW.basis.to_modes(process.transition(still, LAW.denoised(still.x, sigma), unit).x - mean)
        variance = a[0] ** 2 * variance + b[0] ** 2
    return variance


@pytest.mark.parametrize("eta", [1.0, 0.6, 0.2])
@pytest.mark.parametrize("num_steps", [2, 5, 20])
def test_a_stochastic_chain_with_the_law_is_exact_for_a_gaussian_law(num_steps: int, eta: float) -> None:
    """Every sigma has the variance C + sigma^2, so the last step D(x; sigma_min) leaves C^2 / (C + sigma_min^2).

    The start is the exact one. The deterministic last step is the only error.
    """
    process = DenoisingProcess(num_steps, "stochastic", eta=eta, law=LAW)
    found = mode_variances(process, LAW.variance + 80.0**2)
    torch.testing.assert_close(found, LAW.variance**2 / (LAW.variance + 0.002**2), rtol=1e-9, atol=0)


def test_a_plain_stochastic_chain_ends_with_too_little_variance() -> None:
    """Its first step, to sigma' << 80, forgets the state; D = mean + C/(C + s^2) (x - mean) then keeps too little of it.

    The deficiency shrinks with N, at first order (Song et al. 2021: the continuous process is exact).
    """
    ratios = {}
    for num_steps in (5, 20, 320, 640):
        process = DenoisingProcess(num_steps, "stochastic")
        ratios[num_steps] = mode_variances(process, LAW.variance + 80.0**2) / LAW.variance
    assert ratios[5].max() < 0.5 < 0.9 < ratios[320].min()
    assert (ratios[5] < ratios[20]).all() and (ratios[20] < ratios[320]).all()
    shrunk = (1 - ratios[320]) / (1 - ratios[640])
    assert ((shrunk > 1.9) & (shrunk < 2.1)).all()


def test_drawn_chains_have_the_variance_that_the_modes_predict() -> None:
    """4,096 chains of 5 steps. A variance of n draws has the relative standard error sqrt(2/n) = .022; 5 of them."""
    n = 4096
    generator = torch.Generator().manual_seed(1)
    for law in (LAW, None):
        process = DenoisingProcess(5, "stochastic", law=law)
        state = process.initial(torch.randn(n, 1, 4, 4, dtype=torch.float64, generator=generator))
        while not process.terminal(state):
            drawn = torch.randn(n, 1, 4, 4, dtype=torch.float64, generator=generator)
            state = process.transition(state, LAW.denoised(*process.observe(state)), drawn)
        found = LAW.basis.to_modes(state.x).var(0)
        predicted = mode_variances(process, torch.full((1, 4, 4), 80.0**2, dtype=torch.float64))
        torch.testing.assert_close(found, predicted, rtol=5 * (2 / n) ** 0.5, atol=0)


def test_a_chain_starts_from_a_law_of_its_own() -> None:
    """The Gaussian start has mean and covariance of the noised law, so a chain from sigma = 1 is exact; a white one is not."""
    process = DenoisingProcess(5, "stochastic", eta=0.3, law=LAW, start=gaussian_start(LAW), sigma_max=1.0)
    ones = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    start = LAW.basis.to_modes(process.initial(ones).x - LAW.mean)[0] ** 2
    torch.testing.assert_close(start, LAW.variance + 1)
    torch.testing.assert_close(process.initial(0 * ones).x[0], LAW.mean)
    right = LAW.variance**2 / (LAW.variance + 0.002**2)
    torch.testing.assert_close(mode_variances(process, start), right, rtol=1e-9, atol=0)
    white = mode_variances(process, torch.ones(1, 4, 4, dtype=torch.float64))
    assert (white < right).all() and (white / right).min() < 0.5


@pytest.mark.parametrize(("solver", "expected"), [("euler", 1), ("heun", 3), ("2m", 2)])
def test_inverting_and_sampling_again_returns_the_field(solver: str, expected: int) -> None:
    """x_0 at sigma_min = .1, back to sigma = 10 and forward again, over 40 to 320 steps.

    The errors of a step, c h^2 of Euler's and c h^3 of Heun's, meet c (-h)^2 and c (-h)^3 of the step back: Euler's add up,
    Heun's cancel, which leaves order 3. 2M goes back by Heun's steps, whose constant is another, so its order 2 stays.
    """
    field = LAW.draw(noise())

    def error(count: int) -> float:
        process = DenoisingProcess(count + 1, solver, sigma_min=0.1, sigma_max=10.0)
        back = process.invert(law_denoiser, field, 0)
        assert back.step == 0 and back.slope is None and back.previous is None
        return (advance(process, back, count).x - field).abs().max().item()

    assert order(error) == pytest.approx(expected, abs=0.15)


@pytest.mark.parametrize(("solver", "expected"), [("euler", 1), ("heun", 2), ("2m", 2)])
def test_inversion_has_the_order_of_its_solver(solver: str, expected: int) -> None:
    field = LAW.draw(noise())

    def error(count: int) -> float:
        process = DenoisingProcess(count + 1, solver, sigma_min=0.1, sigma_max=10.0)
        return (process.invert(law_denoiser, field, 0).x - flow(field, 0.1, 10.0)).abs().max().item()

    assert order(error) == pytest.approx(expected, abs=0.15)


def test_inversion_stops_at_any_step() -> None:
    """A step further is one step back from there. The last step, to sigma = 0, is not inverted."""
    field = LAW.draw(noise())
    process = DenoisingProcess(6, "euler")
    assert torch.equal(process.invert(law_denoiser, field, 5).x, field)
    for step in (0, 2, 4):
        state, later = process.invert(law_denoiser, field, step), process.invert(law_denoiser, field, step + 1)
        sigma, before = process.sigmas[step + 1], process.sigmas[step]
        expected = euler_step(later.x, slope(later.x, LAW.denoised(later.x, sigma), sigma), sigma, before)
        assert state.step == step
        torch.testing.assert_close(state.x, expected)
    for step in (-1, 6):
        with pytest.raises(ValueError, match=rf"to_step must be in \[0, 5\], got {step}"):
            process.invert(law_denoiser, field, step)


def test_each_inverted_step_asks_for_the_denoiser_of_its_forward_step() -> None:
    """A policy changes weights at a sigma where a step starts, so the step backward must use the weights of that step."""
    process, asked = DenoisingProcess(4, "heun"), []

    def denoiser_from(step_sigma: float) -> Callable[[torch.Tensor, float], torch.Tensor]:
        asked.append(step_sigma)
        return denoise

    process.invert(denoiser_from, noise(), 0)
    assert asked == process.sigmas[2::-1]
