"""Statistics of sample sets: amplitude, mean and standard-deviation fields, bootstrap intervals.

Sets are fields (n, c, h, w) in physical units.
"""

from typing import Literal

import numpy as np
import torch

RESAMPLES = 1000
"""Number of bootstrap resamples."""


def amplitude(fields: torch.Tensor) -> torch.Tensor:
    """Return the standard deviation (c,) over samples and grid, physical units, float64."""
    return fields.double().transpose(0, 1).flatten(1).std(1)


def amplitude_ratio(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the amplitude of a over the amplitude of b (c,)."""
    return amplitude(a) / amplitude(b)


def mean_field_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the MMSE, the mean over grid and channels of ((mean_a - mean_b)/s_c)^2; mean_a and mean_b are over samples."""
    return _mean_square(a.double().mean(0) - b.double().mean(0), b)


def std_field_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """Return the SMSE, the mean over grid and channels of ((std_a - std_b)/s_c)^2; std_a and std_b are over samples."""
    return _mean_square(a.double().std(0) - b.double().std(0), b)


def bootstrap_interval(
    values: torch.Tensor,
    statistic: Literal["mean", "median"] = "mean",
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
    block: int = 1,
) -> tuple[float, float]:
    """Return the 95% percentile interval (Efron 1979) of the mean or median of per-sample values (n,).

    The same seed gives the same bits. ``block`` consecutive values depend on each other and are drawn together: a cluster
    bootstrap (Davison & Hinkley 1997, section 3.8). An incomplete last block is drawn like the other blocks.
    """
    if values.ndim != 1 or len(values) == 0:
        raise ValueError(f"values must be one per sample, got shape {tuple(values.shape)}")
    drawn = values.double().cpu().numpy()
    rng = np.random.default_rng(seed)
    if block > 1:
        blocks = np.split(drawn, range(block, len(drawn), block))
        chosen = (rng.integers(len(blocks), size=len(blocks)) for _ in range(resamples))
        resampled = (np.concatenate([blocks[i] for i in row]) for row in chosen)
    else:
        resampled = (drawn[rng.integers(len(drawn), size=len(drawn))] for _ in range(resamples))
    estimates = [np.mean(x) if statistic == "mean" else np.median(x) for x in resampled]
    low, high = np.quantile(estimates, (0.025, 0.975), method="inverted_cdf")
    return float(low), float(high)


def channel_scale(reference: torch.Tensor) -> torch.Tensor:
    """Return the standard deviations (c, 1, 1) of the reference. ValueError if a channel is constant."""
    std = amplitude(reference)
    if (std == 0).any():
        raise ValueError(f"channel {int((std == 0).nonzero()[0])} of the reference set is constant: its distances have no unit")
    return std[:, None, None]


def _mean_square(difference: torch.Tensor, reference: torch.Tensor) -> float:
    return (difference / channel_scale(reference)).square().mean().item()
