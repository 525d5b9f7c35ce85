"""The output anchor: a penalty on changes of a sample's large scales from the base model's sample."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

ANCHOR_POOL = 4
"""Rows and columns of a cell of the average LP."""


def low_pass(x: torch.Tensor) -> torch.Tensor:
    """Return the average LP of x over 4x4 cells, (b, c, h, w) -> (b, c, h/4, w/4)."""
    return F.avg_pool2d(x, ANCHOR_POOL)


def output_anchor(
    x: torch.Tensor, base_output: torch.Tensor, inputs: Sequence[int] = (), input_weight: float = 1.0
) -> torch.Tensor:
    """Return ||LP(x_0 - x_0^base)||^2 / ||x_0^base||^2 (b,) of x = x_0 (b, c, h, w), model units. Norms are mean squares.

    The base model has the large scales right and the small scales wrong. So the anchor holds the large scales, and the reward
    changes the small scales. The channels ``inputs``, which the equation takes as given, are held at all scales with the
    weight ``input_weight``. Otherwise a reward gains by smoothing the source when the solution's small scales are noise.
    """
    change = x - base_output
    held = low_pass(change).square().mean((-2, -1))  # (b, c)
    if inputs:
        chosen = list(inputs)
        whole = input_weight * change[:, chosen].square().mean((-2, -1))
        held = held.index_copy(1, torch.tensor(chosen, device=x.device), whole)
    return held.mean(1) / base_output.square().flatten(1).mean(1).clamp_min(1e-12)
