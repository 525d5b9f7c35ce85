"""Sigma schedules: golden values, the last steps and refused arguments."""

import pytest
import torch

from envs.schedules import karras_schedule


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
