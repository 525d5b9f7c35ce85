"""Seeds and sample ids of the rows of an environment, from one reset to the next."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import index

Seeds = int | Sequence[int | None] | None
"""One seed for all rows, or one per row. None keeps the seed and continues the numbering."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """Seed and sample id of a row. Both decide its noise."""

    seed: int | None
    """Seed, or None before the first reset."""
    id: int
    """Sample id."""
    stride: int
    """Difference between the ids of two consecutive episodes."""


@dataclass(frozen=True, kw_only=True)
class Numbering:
    """Rows of an environment. A reset changes row i of n as follows:

    ===================  ==============================================================================================
    reset                row i
    ===================  ==============================================================================================
    ``seed=s``           seed s and id i; in the next episode id i + n
    ``seed=[s_0, ...]``  seed s_i and id 0; in the next episode id 1, as in an environment with one row and the seed s_i
    ``seed=None``        its seed and its next id; before any seed, one fresh seed for all rows
    ===================  ==============================================================================================
    """

    rows: tuple[Row, ...]

    @classmethod
    def of(cls, rows: int, seed: int | None = None, first: int = 0) -> "Numbering":
        """Return consecutive ids of one seed."""
        return cls(rows=tuple(Row(seed=seed, id=first + i, stride=rows) for i in range(rows)))

    @property
    def seeds(self) -> list[int]:
        """Seeds of the rows. RuntimeError before the first reset."""
        seeds = [row.seed for row in self.rows if row.seed is not None]
        if len(seeds) < len(self.rows):
            raise RuntimeError("the rows have no seeds yet")
        return seeds

    @property
    def ids(self) -> tuple[int, ...]:
        """Sample ids of the rows."""
        return tuple(row.id for row in self.rows)

    def seeded(self, seed: Seeds, fresh: Callable[[], int]) -> "Numbering":
        """Return the numbering after a reset. ``fresh`` returns a seed for rows without one. In a list, None keeps a row.

        ValueError if the list does not have one entry per row.
        """
        if seed is None:
            return self if all(row.seed is not None for row in self.rows) else Numbering.of(len(self.rows), fresh())
        if not isinstance(seed, Sequence):
            return Numbering.of(len(self.rows), index(seed))
        if len(seed) != len(self.rows):
            raise ValueError(f"seed must be one number or a list of {len(self.rows)}, got a list of {len(seed)}")
        return Numbering(
            rows=tuple(
                row if s is None and row.seed is not None else Row(seed=fresh() if s is None else index(s), id=0, stride=1)
                for s, row in zip(seed, self.rows, strict=True)
            )
        )

    def at(self, ids: Sequence[int]) -> "Numbering":
        """Return the numbering with the given ids. ValueError if there is not one id per row."""
        if len(ids) != len(self.rows):
            raise ValueError(f"sample_ids must name {len(self.rows)} samples, got {len(ids)}")
        return Numbering(
            rows=tuple(Row(seed=row.seed, id=index(i), stride=row.stride) for row, i in zip(self.rows, ids, strict=True))
        )

    def following(self) -> "Numbering":
        """Return the numbering of the next episode."""
        return Numbering(rows=tuple(Row(seed=row.seed, id=row.id + row.stride, stride=row.stride) for row in self.rows))

    def after(self) -> "Numbering":
        """Return the numbering of the next episode if the ids were given: it continues from the largest id."""
        first, stride = max(self.ids) + 1, len(self.rows)
        return Numbering(rows=tuple(Row(seed=row.seed, id=first + i, stride=stride) for i, row in enumerate(self.rows)))
