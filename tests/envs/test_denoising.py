"""The denoising process: its states, its number of network evaluations and its end."""

import pytest
import torch

from envs.denoising import DenoisingProcess, State
from envs.transitions import euler_step, heun_step, slope

SIGMA_DATA = 0.5


def noise() -> torch.Tensor:
    return torch.randn(2, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def denoise(x: torch.Tensor, sigma: float) -> torch.Tensor:
    """Exact denoiser of data N(0, sigma_data^2)."""
    return x * SIGMA_DATA**2 / (sigma**2 + SIGMA_DATA**2)


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
    with pytest.raises(ValueError, match=r"unknown solver 'rk4'; known: \['euler', 'heun'\]"):
        DenoisingProcess(3, "rk4")
