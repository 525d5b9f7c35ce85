"""ETDRK4: its order, its limit without a linear part, and stiff linear parts."""

import math

import numpy as np
import pytest
import torch

from envs.numerics.etdrk4 import ETDRK4
from tiny_models import observed_order


def etdrk4(linear, dt):
    return ETDRK4.create(np.array([linear]), dt, dtype=torch.float64, device="cpu")


def test_etdrk4_has_order_4_on_a_scalar_bernoulli_equation():
    # v' = -v + v^2: 1/v solves w' = w - 1, so v(t) = 1 / (1 + (1/v0 - 1) e^t).
    v0, end = 0.5, 2.0
    truth = 1 / (1 + (1 / v0 - 1) * math.exp(end))
    steps = np.array([8, 16, 32, 64])
    errors = []
    for count in steps:
        stepper, v = etdrk4(-1.0, end / count), torch.tensor([v0], dtype=torch.float64)
        for _ in range(count):
            v = stepper.step(v, torch.square)
        errors.append(abs(v.item() - truth))
    assert observed_order(end / steps, errors) == pytest.approx(4, abs=0.25)


def test_etdrk4_without_a_linear_part_is_classical_rk4():
    # L = 0: v + dt/6 (N1 + 2 N2 + 2 N3 + N4), i.e. q = dt/2 and f1 = f2 = f3 = dt/6.
    s = etdrk4(0.0, 0.3)
    assert [float(c) for c in (s.decay, s.decay_half, s.q, s.f1, s.f2, s.f3)] == pytest.approx(
        [1, 1, 0.15, 0.05, 0.05, 0.05], abs=1e-14
    )


@pytest.mark.parametrize("linear", [-1e4, -3.0, -1e-9])
def test_etdrk4_is_exact_for_a_constant_forcing_however_stiff(linear):
    # v' = L v + c: v(t) = e^{Lt} v0 + c (e^{Lt} - 1)/L.
    dt, v0, c = 0.7, 1.3, 0.4
    truth = math.exp(linear * dt) * v0 + c * math.expm1(linear * dt) / linear
    v = etdrk4(linear, dt).step(torch.tensor([v0], dtype=torch.float64), lambda v: torch.full_like(v, c))
    assert v.item() == pytest.approx(truth, rel=1e-10)
