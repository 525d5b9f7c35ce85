"""Counter-based random numbers: seeds travel between processes, noise does not.

Each sample of a named stream has its own generator: Philox, keyed by seed and stream, with the sample id in its counter. The
bits of a batch do not depend on its chunks or on the process that draws it.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch

MAX_SEED = 2**63 - 1
AHEAD = 1 << 14
"""Largest number of normals per sample that a noise stream draws ahead."""


def generator(seed: int, stream: str, sample_id: int) -> np.random.Generator:
    """Return the generator of a sample: Philox4x64 with the key (seed, hash of stream) and the counter sample_id * 2^192."""
    _check_range(seed, sample_id)
    key = np.array([seed, _stream_key(stream)], dtype=np.uint64)
    counter = np.array([0, 0, 0, sample_id], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


@lru_cache(maxsize=256)
def _stream_key(stream: str) -> int:
    return int.from_bytes(hashlib.blake2b(stream.encode(), digest_size=8).digest(), "little")


def normal(seed: int, stream: str, sample_ids: Sequence[int], shape: tuple[int, ...]) -> torch.Tensor:
    """Return standard normal noise (len(sample_ids), *shape), float64, one independent row per sample id."""
    out = np.empty((len(sample_ids), *shape))
    _fill([seed] * len(sample_ids), stream, sample_ids, out)
    return torch.from_numpy(out)


def _fill(seeds: Sequence[int], stream: str, sample_ids: Sequence[int], out: np.ndarray) -> None:
    """Fill row i of ``out`` (b, ...) with the first draws of sample i. ValueError if a seed or an id is out of range.

    One generator is set to the state of each sample, since making a generator per sample takes several times longer.
    """
    if not len(out):
        return
    philox = np.random.Philox(0)
    drawer = np.random.Generator(philox)
    key, counter = np.array([0, _stream_key(stream)], dtype=np.uint64), np.zeros(4, dtype=np.uint64)
    state: Any = {
        "bit_generator": "Philox",
        "state": {"counter": counter, "key": key},
        "buffer": np.zeros(4, dtype=np.uint64),
        "buffer_pos": 4,  # the buffer is used up, as in a new generator
        "has_uint32": 0,
        "uinteger": 0,
    }
    for seed, sample_id, row in zip(seeds, sample_ids, out.reshape(len(out), -1), strict=True):
        _check_range(seed, int(sample_id))
        key[0], counter[3] = seed, int(sample_id)
        philox.state = state
        drawer.standard_normal(out=row)


def _check_range(seed: int, sample_id: int) -> None:
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed must be in [0, {MAX_SEED}], got {seed}")
    if not 0 <= sample_id <= MAX_SEED:
        raise ValueError(f"sample id must be in [0, {MAX_SEED}], got {sample_id}")


def chunks(total: int, size: int) -> Iterator[range]:
    """Yield consecutive ranges of at most ``size`` that cover range(total)."""
    if size < 1:
        raise ValueError(f"chunk size must be at least 1, got {size}")
    for start in range(0, total, size):
        yield range(start, min(start + size, total))


class NoiseStream:
    """Standard normal noise of a batch, one draw after another. Draw k of a sample depends on seed, stream, id and k only."""

    def __init__(self, seed: int | Sequence[int], stream: str, sample_ids: Sequence[int], *, draws: int = 1) -> None:
        """Start the noise of the samples. ``seed``: one for all samples, or one per sample. ValueError if out of range.

        ``draws``: number of draws that will be asked for. Small noise is drawn so far ahead, which is faster.
        """
        seeds = list(seed) if isinstance(seed, Sequence) else [seed] * len(sample_ids)
        if len(seeds) != len(sample_ids):
            raise ValueError(f"a noise stream needs one seed per sample: {len(sample_ids)} samples, got {len(seeds)} seeds")
        for own, sample_id in zip(seeds, sample_ids, strict=True):
            _check_range(int(own), int(sample_id))
        self._identity = seeds, stream, list(sample_ids)
        self._draws = draws
        self._ahead: list[np.ndarray] = []
        self._generators: list[np.random.Generator] | None = None

    def draw(self, shape: tuple[int, ...]) -> torch.Tensor:
        """Return the next noise (b, *shape), float64. The first draw is that of ``normal``."""
        seeds, stream, ids = self._identity
        if self._generators is None and not self._ahead and self._draws > 1 and math.prod(shape) * self._draws <= AHEAD:
            block = np.empty((len(ids), self._draws, *shape))
            _fill(seeds, stream, ids, block)
            self._ahead = list(np.moveaxis(block, 1, 0))
            self._drawn = 0
        if self._ahead:
            return self._from_block(shape)
        if self._generators is None:
            self._generators = [generator(int(s), stream, int(i)) for s, i in zip(seeds, ids, strict=True)]
        out = np.empty((len(ids), *shape))
        for own, row in zip(self._generators, out.reshape(len(ids), math.prod(shape)), strict=True):
            own.standard_normal(out=row)
        return torch.from_numpy(out)

    def _from_block(self, shape: tuple[int, ...]) -> torch.Tensor:
        if self._drawn == len(self._ahead) or self._ahead[self._drawn].shape[1:] != shape:  # go on without the block
            used = [tuple(part.shape[1:]) for part in self._ahead[: self._drawn]]
            self._ahead, self._draws = [], 1
            for before in used:
                self.draw(before)
            return self.draw(shape)
        self._drawn += 1
        return torch.from_numpy(np.ascontiguousarray(self._ahead[self._drawn - 1]))
