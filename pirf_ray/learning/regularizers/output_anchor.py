"""The output anchor: holds the large scales of each sample to the base model's."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

ANCHOR_POOL = 4


def low_pass(x: torch.Tensor) -> torch.Tensor:
    """Return the averages LP over 4x4 cells, (b, c, h, w) -> (b, c, h/4, w/4)."""
    return F.avg_pool2d(x, ANCHOR_POOL)


def output_anchor(
    x: torch.Tensor, base_output: torch.Tensor, inputs: Sequence[int] = (), input_weight: float = 1.0
) -> torch.Tensor:
    """Return ||LP(x_0 - x_0^base)||^2 / ||x_0^base||^2, (b,), mean squares over the (low-passed) grid; x (b, c, h, w), model units.

    It holds the large scales, which the base model has right, and leaves the small ones, which it has wrong, to the reward.
    The channels ``inputs``, which the equation takes as given, are held at all scales with weight ``input_weight``. Without
    that, where the solution's small scales are noise, a reward gains by smoothing the source away.
    """
    change = x - base_output
    held = low_pass(change).square().mean((-2, -1))  # (b, c)
    if inputs:
        chosen = list(inputs)
        whole = input_weight * change[:, chosen].square().mean((-2, -1))
        held = held.index_copy(1, torch.tensor(chosen, device=x.device), whole)
    return held.mean(1) / base_output.square().flatten(1).mean(1).clamp_min(1e-12)
