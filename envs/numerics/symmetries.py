"""Exact symmetries of domains, for the augmentation of training data."""

import numpy as np
import torch


def random_square_symmetry(fields: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return fields (b, c, n, n) of scalars, each moved by one of the eight symmetries of the square at random."""
    moved = []
    for field, turns, transpose in zip(fields, rng.integers(4, size=len(fields)), rng.integers(2, size=len(fields)), strict=True):
        turned = torch.rot90(field, int(turns), dims=(-2, -1))
        moved.append(turned.mT if transpose else turned)
    return torch.stack(moved)
