"""Regularizers: what holds the tuned model to the pretrained one."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

ANCHOR_POOL = 4


def low_pass(x: torch.Tensor) -> torch.Tensor:
    """LP: averages over 4x4 cells, (b, c, h, w) -> (b, c, h/4, w/4)."""
    return F.avg_pool2d(x, ANCHOR_POOL)


def output_anchor(
    x: torch.Tensor, base_output: torch.Tensor, inputs: Sequence[int] = (), input_weight: float = 1.0
) -> torch.Tensor:
    """||LP(x_0 - x_0^base)||^2 / ||x_0^base||^2, (b,), mean squares over the (low-passed) grid; x in model units (b, c, h, w).

    Holds the large scales, which the base model has right, and leaves the small ones, which it has wrong, to the reward.
    The channels ``inputs``, which the equation takes as given, are held at all scales, weighing ``input_weight``: where
    the solution's small scales are noise, a reward would else gain by smoothing the source away.
    """
    change = x - base_output
    held = low_pass(change).square().mean((-2, -1))  # (b, c)
    if inputs:
        chosen = list(inputs)
        whole = input_weight * change[:, chosen].square().mean((-2, -1))
        held = held.index_copy(1, torch.tensor(chosen, device=x.device), whole)
    return held.mean(1) / base_output.square().flatten(1).mean(1).clamp_min(1e-12)


def weight_distance(tensors: dict[str, torch.Tensor], reference: dict[str, torch.Tensor]) -> torch.Tensor:
    """sum ||theta - theta_0||^2 over the learning weights, theta_0 the pretrained ones (scalar)."""
    return torch.stack([(tensor - reference[name]).square().sum() for name, tensor in tensors.items()]).sum()
