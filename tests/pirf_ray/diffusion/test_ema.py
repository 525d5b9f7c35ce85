"""The moving average of weights: warm-up, decay, continuation, refusals."""

import pytest
import torch

from pirf_ray.diffusion.ema import Ema


def test_ema_warms_up_then_keeps_its_decay() -> None:
    value = torch.zeros(1, dtype=torch.float64)
    slow, fast = Ema({"a": value}, 0.999), Ema({"a": value}, 0.05)
    value.fill_(1.0)
    assert slow.tensors["a"].item() == 0  # a copy, not the tensor itself
    seen = []
    for _ in range(2):
        slow.update({"a": value})
        fast.update({"a": value})
        seen.append((slow.tensors["a"].item(), fast.tensors["a"].item()))
    # slow: d = 1/10, then 2/11: 0 -> .9 -> (2 * .9 + 9)/11; fast: d = .05 both times: 0 -> .95 -> .9975
    assert seen[0] == pytest.approx((0.9, 0.95)) and seen[1] == pytest.approx((10.8 / 11, 0.9975))
    slow.load({"a": torch.full((1,), 3.0)}, updates=10**6)
    slow.update({"a": value})
    assert slow.tensors["a"].item() == pytest.approx(0.999 * 3 + 0.001)
    assert slow.updates == 10**6 + 1


def test_a_continued_average_is_the_uninterrupted_average() -> None:
    """The warm-up depends on the number of updates, so the number travels with the tensors."""
    values = [{"a": torch.tensor([float(i)])} for i in range(8)]
    whole, part = Ema(values[0], 0.9), Ema(values[0], 0.9)
    for value in values:
        whole.update(value)
    for value in values[:5]:
        part.update(value)
    continued = Ema(values[0], 0.9)
    continued.load(part.tensors, part.updates)
    for value in values[5:]:
        continued.update(value)
    assert torch.equal(continued.tensors["a"], whole.tensors["a"])


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_an_impossible_decay_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match=rf"ema decay must be in \[0, 1\), got {decay}"):
        Ema({}, decay)


def test_tensors_of_other_names_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Ema({"a": torch.zeros(1)}, 0.9).load({"b": torch.zeros(1)}, 0)
