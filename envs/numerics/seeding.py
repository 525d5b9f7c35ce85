"""Counter-based random numbers: seeds travel between processes, noise does not.

Each sample of a named stream has its own generator: Philox, keyed by seed and stream, with the sample id in its counter. The
bits of a batch do not depend on its chunks or on the process that draws it.
"""

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch

MAX_SEED = 2**63 - 1


def generator(seed: int, stream: str, sample_id: int) -> np.random.Generator:
    """Return the generator of a sample: Philox4x64 with the key (seed, hash of stream) and the counter sample_id * 2^192."""
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in [0, {MAX_SEED}], got {seed}")
    if not 0 <= sample_id <= MAX_SEED:
        raise ValueError(f"sample id must be in [0, {MAX_SEED}], got {sample_id}")
    stream_key = int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")
    key = np.array([seed, stream_key], dtype=np.uint64)
    counter = np.array([0, 0, 0, sample_id], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def normal(seed: int, stream: str, sample_ids: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Return standard normal noise (len(sample_ids), *shape), float64, one independent row per sample id."""
    rows = [generator(seed, stream, int(i)).standard_normal(shape) for i in sample_ids]
    return torch.from_numpy(np.stack(rows)) if rows else torch.empty((0, *shape), dtype=torch.float64)


def chunks(total: int, size: int) -> Iterator[range]:
    """Yield consecutive ranges of at most ``size`` that cover range(total)."""
    if size < 1:
        raise ValueError(f"chunk size must be at least 1, got {size}")
    for start in range(0, total, size):
        yield range(start, min(start + size, total))
